"""Health, readiness, version, metrics and the front door."""
