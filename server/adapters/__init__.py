"""Versions and their aliases."""
