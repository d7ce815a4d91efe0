"""LMMs behind one small interface, one family a file, found by name."""

from __future__ import annotations

import importlib

import torch
from transformers.utils.logging import disable_progress_bar

from palimpsest.config import Model
from palimpsest.models.lmm import LMM


def load(config: Model) -> LMM:
    """Load a model's published weights; ValueError names what is missing."""
    disable_progress_bar()  # of a file or two; ours show what takes long
    choose_products(config)
    return importlib.import_module(f"palimpsest.models.families.{config.family}").load(config)


def choose_products(config: Model) -> None:
    """Have a GPU multiply what is in fp32 as exactly as a model's precision deserves.

    In a bf16 model that is an adapter, by which activations of 8 significant bits are multiplied:
    TF32 has 11 bits, and is several times as fast as fp32. Sums are in fp32 either way.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "bf16"
