"""What was measured after every stage."""
