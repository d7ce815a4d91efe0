"""Modules of the model itself, trained as they are: fine-tuning, of the whole model or of a part.

As He et al. (arXiv 2311.16206) tune InstructBLIP's query tokens, Q-Former and projection, or
LLaVA's projector and language model.
"""

from __future__ import annotations

import re
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from palimpsest.files import write_json
from palimpsest.methods import adapter
from palimpsest.methods import settings as s


class Subset(adapter.Adapter):
    """Named modules and parameters learn. In a half-precision model they are held in fp32.

    They compute in half precision all the same, by autocast, and hand on what the rest expects.
    Their names and values in the adapter's directory are those of the model.
    """

    targets = "trainable"
    weights = "subset.safetensors"
    config = "subset.json"
    mergeable = True

    def __init__(self, settings: s.Subset) -> None:
        super().__init__(settings)
        self.dtypes: dict[str, torch.dtype] = {}  # of each trained parameter, before it was trained

    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """Freeze a model but for what `targets` matches: full names of modules or of parameters.

        Raises ValueError if it matches nothing that has weights.
        """
        roots = _outermost(model, targets)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if any(f"{name}.".startswith(f"{root}.") for root in roots):
                self.dtypes[name] = parameter.dtype
                parameter.requires_grad_(True)
        for module in filter(None, roots.values()):
            dtype = next(module.parameters()).dtype
            if dtype != torch.float32:
                _autocast(module, dtype)
        for name in self.dtypes:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.float()
        return model

    def owns(self, name: str) -> bool:
        """See `Adapter.owns`; true of nothing before `attach`."""
        return name in self.dtypes

    def merge(self, model: nn.Module) -> None:
        """Bring what has learnt back to the model's precision; exact up to that one rounding."""
        for module in model.modules():
            vars(module).pop("forward", None)
        for name, dtype in self.dtypes.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)

    def key(self, name: str) -> str:
        """Return the parameter's name in the model."""
        return name

    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write the base model's name to `subset.json`; the tensors' names say the rest."""
        write_json(directory / self.config, {**self.identity(), "base_model_name_or_path": base})

    def identity(self) -> dict[str, Any]:
        """See `Adapter.identity`."""
        return {"version": 1, **self.settings.model_dump()}


def _outermost(model: nn.Module, targets: str) -> dict[str, nn.Module | None]:
    """Return what a regular expression matches and is in nothing else that it matches.

    A parameter that stands by itself has no module here; a list of modules stands for its members.
    """
    modules = {
        n: m for n, m in model.named_modules() if n and next(m.parameters(), None) is not None
    }
    names = [*modules, *(name for name, _ in model.named_parameters())]
    matched = {name for name in names if re.fullmatch(targets, name)}
    if not matched:
        raise ValueError(f"targets {targets!r} match no module of {type(model).__name__}")
    for name in list(matched):
        if isinstance(modules.get(name), nn.ModuleList):
            matched |= {f"{name}.{child}" for child, _ in modules[name].named_children()}
            matched.remove(name)
    return {
        name: modules.get(name)
        for name in names
        if name in matched and not any(name.startswith(f"{other}.") for other in matched)
    }


def _autocast(module: nn.Module, dtype: torch.dtype) -> None:
    """Have a module, or a copy of it, compute in a half precision, and return that."""
    forward = type(module).forward

    def half(value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_real else value

    @wraps(forward)
    def mixed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, dtype):
            return tree_map(half, forward(self, *args, **kwargs))

    module.forward = MethodType(mixed, module)  # a deep copy's is the copy's own
