"""Tiny random models in the formats in which the large ones are published, one family a file."""
