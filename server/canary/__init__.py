"""Canary and shadow: a version answers a share of the requests, or is compared, before it is stable."""
