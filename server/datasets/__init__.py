"""Data sets: validate without training, keep, look at."""
