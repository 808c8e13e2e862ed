"""Trainings in processes of their own, one after another, and the runs that they leave."""
