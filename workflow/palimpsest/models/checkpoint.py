"""What a stage has learnt, in a stage directory: the adapter, and the projector where it learns.

A stage directory and the base model are enough to go on learning or to evaluate.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from palimpsest.config import Method, Model
from palimpsest.methods.adapter import Adapter, build
from palimpsest.models.lmm import LMM

ADAPTER = "adapter"
PROJECTOR = "projector.safetensors"


def attach(lmm: LMM, model: Model, method: Method) -> Adapter:
    """Freeze the model, put the method's adapter into it and free what else the method trains.

    Errors: ValueError if the model's config does not say where the adapter goes.
    """
    adapter = build(method.adapter)
    targets = getattr(model, adapter.targets)
    if targets is None:
        raise ValueError(
            f"{adapter.targets}: is missing in the model's config; a method whose adapter is "
            f"{method.adapter.name!r} trains what it names"
        )
    adapter.attach(lmm.module, targets)
    if method.train_projector:
        _free_projector(lmm.module, model, adapter)
    return adapter


def save(
    state: dict[str, torch.Tensor],
    directory: Path,
    lmm: LMM,
    model: Model,
    adapter: Adapter,
) -> None:
    """Write the trained parameters, given whole by their names in the module."""
    learnt = {name: t for name, t in state.items() if adapter.owns(name)}
    adapter.save(learnt, directory / ADAPTER, lmm.module, model.weights)
    rest = {name: t.contiguous() for name, t in state.items() if name not in learnt}
    if rest:
        save_file(rest, directory / PROJECTOR, metadata={"format": "pt"})


@torch.no_grad()
def load(lmm: LMM, directory: Path, model: Model, method: Method, adapter: Adapter) -> None:
    """Read what a stage has learnt into a module with the method's adapter attached.

    Errors: ValueError names the file whose tensors are not those that the method trains.
    """
    adapter.load(lmm.module, directory / ADAPTER)
    if not method.train_projector:
        return
    path = directory / PROJECTOR
    found = load_file(path)
    wanted = {n: p for n, p in lmm.module.named_parameters() if _of_projector(n, model, adapter)}
    if found.keys() != wanted.keys():
        odd = ", ".join(sorted(found.keys() ^ wanted.keys()))
        raise ValueError(f"{path}: holds other tensors than the projector of the model: {odd}")
    for name, parameter in wanted.items():
        parameter.copy_(found[name])


def _free_projector(module: nn.Module, model: Model, adapter: Adapter) -> None:
    """Have the projector trained, in fp32 as all that is trained, whatever the model around it is.

    Errors: ValueError if the model has no module of the projector's name.
    """
    try:
        projector = module.get_submodule(model.projector)
    except AttributeError:
        raise ValueError(
            f"projector: {model.projector!r} is no module of a {type(module).__name__}; "
            "correct it in the model's config"
        ) from None
    dtype = next(projector.parameters()).dtype
    for name, parameter in module.named_parameters():
        if _of_projector(name, model, adapter):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    projector.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
    projector.register_forward_hook(lambda _, inputs, output: output.to(dtype))


def _of_projector(name: str, model: Model, adapter: Adapter) -> bool:
    return name.startswith(f"{model.projector}.") and not adapter.owns(name)
