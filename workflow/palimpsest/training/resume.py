"""Checkpoints from which a killed stage goes on, bit for bit as if it had not been killed.

    resume/step-000120/      the engine's own files, and progress.json, which is written last

The noise of a step depends on seed, lineage, step and rank alone (`order.step_seed`), and so does
the order of the examples: nothing else needs to be kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from palimpsest.attempts import PROGRESS, checkpoints
from palimpsest.files import flush, read_json, write_json
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
        for key, wanted in self.identity.items():
            if progress.get(key) != wanted:
                raise ValueError(
                    f"{newest}: this checkpoint has {key} {progress.get(key)!r}, the stage now "
                    f"has {wanted!r}. Restore the config to go on, or remove {self.directory} to "
                    "start the stage anew"
                )
        engine.load_checkpoint(str(self.directory), tag=newest.name, load_module_strict=False)
        return progress

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
        for script in self.directory.glob("zero_to_*.py"):  # the engine leaves it beside
            script.unlink()


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
