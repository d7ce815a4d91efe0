"""LMMs behind one small interface, one family a file, found by name."""

from __future__ import annotations

import importlib

from transformers.utils.logging import disable_progress_bar

from palimpsest.config import Model
from palimpsest.models.lmm import LMM


def load(config: Model) -> LMM:
    """Load a model's published weights; ValueError names what is missing."""
    disable_progress_bar()  # of a file or two; ours show what takes long
    return importlib.import_module(f"palimpsest.models.families.{config.family}").load(config)
