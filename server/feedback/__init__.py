"""Teach by correction: thumbs are counted, corrections wait together until they become a job."""
