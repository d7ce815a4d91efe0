"""Modules that grow from stage to stage: what a smaller one had learnt is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def inherit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters of an earlier, smaller module, by name, into the leading corner of its own.

    What lies beyond the corner, of inputs and outputs that are new, stays as it was initialised.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in state.items():
        parameters[name][tuple(slice(size) for size in tensor.shape)] = tensor
