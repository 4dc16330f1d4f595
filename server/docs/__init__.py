"""What the API says of itself: ``/openapi.json`` and the page ``/docs``."""
