"""Parts that the programs share which measure a running gateway."""
