"""Attacks the software with hostile and damaged files, arguments and requests, and judges how it reacts."""
