"""A training run: its settings, what a candidate is judged by, the loop, and the folder that keeps it."""
