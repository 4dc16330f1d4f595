"""Training jobs, as the ``openai`` client creates and watches them."""
