"""Captions of pictures, written by a model of the user's own."""
