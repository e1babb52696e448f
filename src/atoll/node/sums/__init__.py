"""Rounds of which the server sees the sum alone, at a site."""
