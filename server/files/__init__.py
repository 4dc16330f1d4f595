"""Uploaded files, in OpenAI's shape."""
