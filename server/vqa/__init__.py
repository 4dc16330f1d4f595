"""Ask one question about one picture."""
