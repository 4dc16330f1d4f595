"""The names that can be asked."""
