"""What a swap of versions costs those who ask meanwhile."""
