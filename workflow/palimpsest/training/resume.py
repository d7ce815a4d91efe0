"""Checkpoints from which a killed stage goes on, bit for bit as if it had not been killed.

    resume/step-000120/      the engine's own files, and progress.json, which is written last
    resume/keys.safetensors  the result of a phase that is not made of steps (see phases.py)

The noise of a step depends on seed, lineage, step and rank alone (`order.step_seed`), and so does
the order of the examples: nothing else needs to be kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.attempts import PROGRESS, checkpoints
from palimpsest.files import canonical_json, flush, read_json, whole_file, write_json
from palimpsest.training.engine import Engine

KEPT = 2  # checkpoints


class Resume:
    """The resume directory of one stage, owned by one job at a time."""

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        """`identity` says what the checkpoints belong to: stage fingerprint, ranks, ZeRO stage."""
        self.directory, self.identity = directory, identity

    def save(self, engine: Engine, progress: dict[str, Any]) -> None:
        """Checkpoint after `progress["step"]` steps; older ones but one are removed."""
        name = f"step-{progress['step']:06}"
        partial = self.directory / f".{name}.partial"
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(
            str(self.directory), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
        )
        flush(partial)  # each rank its own files
        dist.barrier()
        if dist.get_rank() == 0:
            files = {path.name: path.stat().st_size for path in partial.iterdir()}
            write_json(partial / PROGRESS, {**self.identity, **progress, "files": files})
            shutil.rmtree(self.directory / name, ignore_errors=True)
            os.replace(partial, self.directory / name)
            for old in checkpoints(self.directory)[:-KEPT]:
                shutil.rmtree(old)
        dist.barrier()

    def load(self, engine: Engine) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint and return its progress; None if there is none.

        Errors: ValueError names the checkpoint if it belongs to another config or another number
        of ranks; it is left as it is.
        """
        newest = self._newest_whole()
        if newest is None:
            return None
        progress = read_json(newest / PROGRESS)
        self._check(progress, newest)
        engine.load_checkpoint(str(self.directory), tag=newest.name, load_module_strict=False)
        return progress

    def once(self, phase: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that a phase gives: as an earlier attempt kept them, or computed now.

        Errors: ValueError as for `load`.
        """
        path = self.directory / f"{phase}.safetensors"
        kept = self._kept(path)
        dist.barrier()  # every rank has looked
        if kept is not None:
            return kept
        found = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
        if dist.get_rank() == 0:
            with whole_file(path) as partial:
                save_file(found, partial, metadata={"identity": canonical_json(self.identity)})
        dist.barrier()
        return found

    def _kept(self, path: Path) -> dict[str, Tensor] | None:
        """Read what a phase gave; None if it was not finished, or its file is damaged."""
        try:
            with safe_open(path, "pt") as file:
                self._check(json.loads(file.metadata()["identity"]), path)
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None

    def _check(self, found: dict[str, Any], where: Path) -> None:
        for key, wanted in self.identity.items():
            if found.get(key) != wanted:
                raise ValueError(
                    f"{where}: this checkpoint has {key} {found.get(key)!r}, the stage now "
                    f"has {wanted!r}. Restore the config to go on, or remove {self.directory} to "
                    "start the stage anew"
                )

    def _newest_whole(self) -> Path | None:
        """Return the newest checkpoint of which nothing is missing; damaged ones are removed."""
        damaged = []
        for checkpoint in reversed(checkpoints(self.directory)):
            if not (damage := _damage(checkpoint)):
                break
            damaged.append((checkpoint, damage))
        dist.barrier()  # every rank has looked
        if dist.get_rank() == 0:
            for path, damage in damaged:
                print(f"{path}: removed, for it is damaged: {damage}", flush=True)
                shutil.rmtree(path)
        dist.barrier()
        left = checkpoints(self.directory)
        return left[-1] if left else None

    def clear(self) -> None:
        """Remove all that a finished stage needs no more; its log and metrics stay."""
        for checkpoint in [*self.directory.glob("step-*"), *self.directory.glob(".step-*.partial")]:
            shutil.rmtree(checkpoint)
        # What phases gave, and a script that the engine leaves beside.
        for file in [*self.directory.glob("*.safetensors"), *self.directory.glob("zero_to_*.py")]:
            file.unlink()


def _damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, by their sizes; None if nothing is."""
    try:
        sizes = read_json(checkpoint / PROGRESS)["files"]
    except ValueError as error:
        return str(error)
    for name, size in sizes.items():
        path = checkpoint / name
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            return f"{name} has {found} of {size} bytes"
    return None
