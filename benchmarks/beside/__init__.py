"""What learning costs those who ask, and what asking costs learning, on one machine."""
