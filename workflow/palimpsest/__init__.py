"""Palimpsest measures what a large multimodal model forgets when it is taught task after task."""

__version__ = "0.1.0"
