"""Explain which increments answer a question, and why."""
