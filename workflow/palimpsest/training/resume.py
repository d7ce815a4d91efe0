"""Checkpoints from which a killed stage goes on, bit for bit as if it had not been killed.

    resume/step-000120/      the engine's own files, and progress.json, which is written last

The noise of a step depends on seed, lineage, step and rank alone (`order.step_seed`), and so does
the order of the examples: nothing else needs to be kept.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from palimpsest.files import read_json, write_json
from palimpsest.training.engine import Engine

KEPT = 2  # checkpoints
ATTEMPTS = "attempts.jsonl"


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
        dist.barrier()
        if dist.get_rank() == 0:
            write_json(partial / "progress.json", {**self.identity, **progress})
            shutil.rmtree(self.directory / name, ignore_errors=True)
            os.replace(partial, self.directory / name)
            for old in self._names()[:-KEPT]:
                shutil.rmtree(self.directory / old)
        dist.barrier()

    def load(self, engine: Engine) -> dict[str, Any] | None:
        """Restore the newest checkpoint and return its progress; None if there is none.

        Errors: ValueError names the checkpoint if it belongs to another config or another number
        of ranks; it is left as it is.
        """
        names = self._names()
        if not names:
            return None
        newest = self.directory / names[-1]
        progress = read_json(newest / "progress.json")
        for key, wanted in self.identity.items():
            if progress.get(key) != wanted:
                raise ValueError(
                    f"{newest}: this checkpoint has {key} {progress.get(key)!r}, the stage now "
                    f"has {wanted!r}. Restore the config to go on, or remove {self.directory} to "
                    "start the stage anew"
                )
        engine.load_checkpoint(str(self.directory), tag=names[-1], load_module_strict=False)
        return progress

    def note_attempt(self, step: int) -> None:
        """Write down that a job starts, or goes on, after a step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        attempt = {"begun": datetime.now(UTC).isoformat(timespec="seconds"), "after_step": step}
        with (self.directory / ATTEMPTS).open("a") as f:
            f.write(
                json.dumps({**attempt, "host": socket.gethostname(), "pid": os.getpid()}) + "\n"
            )

    def num_attempts(self) -> int:
        """Return how many jobs have worked on the stage."""
        return len((self.directory / ATTEMPTS).read_text().splitlines())

    def clear(self) -> None:
        """Remove all that a finished stage needs no more; its log and metrics stay."""
        for name in self._names():
            shutil.rmtree(self.directory / name)
        (self.directory / ATTEMPTS).unlink()
        for script in self.directory.glob("zero_to_*.py"):  # the engine leaves it beside
            script.unlink()

    def _names(self) -> list[str]:
        return sorted(p.parent.name for p in self.directory.glob("step-*/progress.json"))
