"""Show the product at work: two real tasks learned one after the other while it keeps answering."""
