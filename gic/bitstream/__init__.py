"""Symbols to bytes and back, the same on every machine, and the container of a file."""
