"""EProj's experts: a projector for each step learnt, beside the published one.

He et al. (arXiv 2311.16206): every expert starts as the published projector, only the newest
learns, and a router says through which of them a picture goes.

Shapes: B pictures; what else the projector's input and output are made of is its own affair.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.files import read_json, write_json
from palimpsest.methods import adapter
from palimpsest.methods import settings as s


class ProjectorExperts(nn.Module):
    """The published projector, which is expert 0, and the experts 1, 2, … learnt since.

    The latter are held and compute in fp32, whatever the model around them is. `experts_B` says
    which expert each picture goes through; while it is None, all go through the newest.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.experts = base, nn.ModuleList()
        self.experts_B: Tensor | None = None

    def grow(self) -> None:
        """Add a copy of the base, which is then all that learns."""
        self.requires_grad_(False)
        self.experts.append(deepcopy(self.base).float().requires_grad_(True))

    def send(self, ago: Tensor) -> None:
        """Have the pictures that are looked at next go through the experts of so many steps ago.

        The base is the expert of what was learnt before there were others.
        """
        self.experts_B = (len(self.experts) - ago).clamp_min(0)

    def forward(self, x_B: Tensor) -> Tensor:
        """Return what each picture's expert makes of it, in the precision of the base."""
        if self.experts_B is None:
            return self._through(len(self.experts), x_B)
        assert len(self.experts_B) == len(x_B), "each picture is sent to an expert"
        places = [(self.experts_B == n).nonzero().flatten() for n in range(len(self.experts) + 1)]
        shares = [self._through(n, x_B[rows]) for n, rows in enumerate(places) if len(rows)]
        return torch.cat(shares)[torch.cat(places).argsort()]

    def _through(self, expert: int, x_B: Tensor) -> Tensor:
        if expert == 0:
            return self.base(x_B)
        return self.experts[expert - 1](x_B.float()).to(next(self.base.parameters()).dtype)


class Projector(adapter.Adapter):
    """One projector expert a step; `targets` is the name of the model's projector, no pattern."""

    targets = "projector"
    weights = "experts.safetensors"
    config = "experts.json"
    mergeable = False

    def __init__(self, settings: s.Projector) -> None:
        super().__init__(settings)
        self.name = ""  # of the projector in the model that it is attached to

    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """Freeze a model and make room for experts; there is none before `load` or `grow`.

        Raises ValueError if the model has no module of that name.
        """
        try:
            base = model.get_submodule(targets)
        except AttributeError:
            raise ValueError(
                f"projector: {targets!r} is no module of a {type(model).__name__}; "
                "correct it in the model's config"
            ) from None
        self.name = targets
        model.requires_grad_(False)
        model.set_submodule(targets, ProjectorExperts(base).train(model.training))
        return model

    def experts(self, model: nn.Module) -> ProjectorExperts:
        """Return the experts of the model that this is attached to."""
        return model.get_submodule(self.name)

    def grow(self, model: nn.Module) -> None:
        """Add an expert for the step to come; those that were learnt before are frozen."""
        self.experts(model).grow()

    def owns(self, name: str) -> bool:
        """Return whether a parameter is of an expert, the base excepted."""
        return bool(self.name) and name.startswith(f"{self.name}.experts.")

    def load(self, model: nn.Module, directory: Path) -> None:
        """See `Adapter.load`; the attached model gets as many experts as were saved, all frozen.

        If the tensors are refused, these are copies of the base, and the model computes as before.
        """
        for _ in range(read_json(directory / self.config)["experts"]):
            self.grow(model)
        super().load(model, directory)
        model.requires_grad_(False)

    def key(self, name: str) -> str:
        """Return the parameter's name in the model."""
        return name

    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write the number of experts and the base model's name to `experts.json`."""
        about = {"experts": len(self.experts(model).experts), "base_model_name_or_path": base}
        write_json(directory / self.config, {**self.identity(), **about})

    def identity(self) -> dict[str, Any]:
        """See `Adapter.identity`."""
        return {"version": 1, **self.settings.model_dump()}
