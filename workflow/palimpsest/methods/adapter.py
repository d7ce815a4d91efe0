"""The interface of adapters: where new knowledge is written, beside frozen base weights."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palimpsest import methods
from palimpsest.files import read_json
from palimpsest.methods import settings as s


class Adapter(ABC):
    """Trainable parameters in chosen layers of a model, of which all else is frozen.

    An adapter keeps nothing but its settings and, at most, which parameters of the model are its
    own: everything it learns is in parameters of the model.
    """

    targets: ClassVar[str] = "adapter_targets"  # key of a model's config that says where it goes

    mark: ClassVar[str]  # stands in the name of each parameter of the adapter, and of no other
    weights: ClassVar[str]  # file of the tensors in an adapter's directory
    config: ClassVar[str]  # file of the settings beside it
    mergeable: ClassVar[bool]  # whether `merge` can fold the adapter into the base weights
    penalises: ClassVar[bool] = False  # whether it has a `penalty`, called as a regulariser's is

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """Freeze a model, put new adapters into the targeted layers, and return the same model.

        `targets` is a regular expression that matches the full names of linear layers. An
        untrained adapter leaves the model's outputs as they are. The initial values depend on
        torch's global seed alone.

        Raises ValueError if `targets` matches no module, or one that is no linear layer.
        """

    def grow(self, model: nn.Module) -> None:  # noqa: B027 - most adapters have nothing to do
        """Make room in an attached model for the step to come, after `load` and before an engine.

        Only adapters that learn every step apart do anything.
        """

    def owns(self, name: str) -> bool:
        """Return whether a parameter, by its name in the attached model, is the adapter's."""
        return self.mark in name

    def save(
        self, state: Mapping[str, Tensor], directory: Path, model: nn.Module, base: str
    ) -> None:
        """Write the adapter's tensors and settings into a directory.

        `state` holds exactly the adapter's tensors by their names in the attached `model`, whole
        (under ZeRO-3: gathered). `base` is the hub id or path of the base model.

        Raises ValueError if a tensor is missing, foreign or not whole.
        """
        tensors = {self.key(name): t.detach().contiguous() for name, t in state.items()}
        _check(tensors, self._parameters(model), "the state to save")
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / self.weights, metadata={"format": "pt"})
        self.save_config(directory, model, base)

    @torch.no_grad()
    def load(self, model: nn.Module, directory: Path) -> None:
        """Read a saved adapter into an attached model (before an engine shards it).

        Raises ValueError, naming the file, if the settings differ, or if a tensor is missing,
        foreign or wrongly shaped; the model is then unchanged.
        """
        found = read_json(directory / self.config)
        for name, wanted in self.identity().items():
            if found.get(name) != wanted:
                raise ValueError(
                    f"{directory / self.config}: {name} is {found.get(name)!r}, but the method's "
                    f"settings say {wanted!r}: load it with the settings it was trained with"
                )
        path = directory / self.weights
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise ValueError(f"{path}: file is missing") from None
        except SafetensorError as error:
            raise ValueError(f"{path}: not a valid safetensors file ({error})") from None
        parameters = self._parameters(model)
        _check(tensors, parameters, str(path))
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])

    def merge(self, model: nn.Module) -> None:
        """Fold the adapter into the base weights and leave the plain base model.

        Only where `mergeable`. It cannot be undone: keep a copy of the base weights.
        """
        raise NotImplementedError(f"{self.settings.name} cannot be merged into the base weights")

    @abstractmethod
    def key(self, name: str) -> str:
        """Return the name in the adapter's file of a parameter of the attached model."""

    @abstractmethod
    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write the settings beside the tensors."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the entries of the config file without which the tensors mean something else."""

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {self.key(n): p for n, p in model.named_parameters() if self.owns(n)}


def build(settings: s.Adapter) -> Adapter:
    """Return the adapter of the given settings: the class of their name in `methods/<name>.py`."""
    return getattr(methods.part(settings), type(settings).__name__)(settings)


def target_layers(model: nn.Module, targets: str) -> list[str]:
    """Return the names of the linear layers that a regular expression matches in full.

    Raises ValueError if it matches nothing, or a module that is no `nn.Linear`.
    """
    matched = {n: m for n, m in model.named_modules() if re.fullmatch(targets, n)}
    if not matched:
        raise ValueError(f"targets {targets!r} match no module of {type(model).__name__}")
    for name, module in matched.items():
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"targets {targets!r} match {name}, which is a {type(module).__name__}: "
                "match linear layers only"
            )
    return list(matched)


def _check(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], where: str
) -> None:
    """Raise ValueError unless the tensors are those of the parameters, by name and shape."""
    for problem, names in (
        ("is missing", parameters.keys() - tensors.keys()),
        ("is foreign", tensors.keys() - parameters.keys()),
    ):
        if names:
            raise ValueError(
                f"{where}: tensor {min(names)} {problem} ({len(names)} such; the attached model "
                f"has {len(parameters)}): is it the same base model with the same targets?"
            )
    for name, parameter in parameters.items():
        wanted = tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, under ZeRO-3
        if tuple(tensors[name].shape) != wanted:
            raise ValueError(
                f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                f"but the attached model's has {wanted}"
            )
