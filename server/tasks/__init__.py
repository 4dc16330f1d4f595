"""Teach a task with one call: examples or a data set file."""
