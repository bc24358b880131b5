"""Hostile and damaged input: what is done to files, commands and requests, and what counts as held."""
