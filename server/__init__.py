"""The gateway and the inference engines. Reads adapter versions, never writes weights."""
