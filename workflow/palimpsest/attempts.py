"""The attempts at a stage: which job began when and where, how far it came, how it ended.

    resume/attempts.jsonl    a line begins an attempt; the lines after it say more of it

A job that is killed writes no last line. The next attempt asks Slurm why, and writes it down.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest import slurm

FINISHED, MEMORY, TIME = "finished", "out of memory", "time limit"
NEAR_LIMIT = "stopped before its time limit, with a checkpoint"
SIGNALLED = "stopped by SIGTERM, with a checkpoint"
STOPPED = (NEAR_LIMIT, SIGNALLED)
PROGRESS = "progress.json"  # written last into a checkpoint
KILLED = "killed"
SLURM_SAYS = {
    "OUT_OF_MEMORY": MEMORY,
    "TIMEOUT": TIME,
    "DEADLINE": TIME,
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
}


def checkpoints(resume: Path) -> list[Path]:
    """Return the checkpoints in a stage's resume directory, `step-<n>`, the oldest first."""
    return sorted(path.parent for path in resume.glob(f"step-*/{PROGRESS}"))


@dataclass(frozen=True)
class Attempt:
    """One job's work on a stage."""

    begun: str  # ISO 8601, UTC
    host: str
    pid: int
    job: str | None = None  # of Slurm
    after_step: int | None = None  # where it went on; None until it trains
    num_steps: int | None = None  # of the stage
    ended: str | None = None
    why: str | None = None  # how it ended; None while it runs, or if it was killed


class Attempts:
    """The attempts at the stage of a resume directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "attempts.jsonl"

    def begin(self) -> None:
        """Write down that this process begins; say of the attempt before why it ended."""
        if (last := self.last) and last.why is None:
            self.note(why=self.why(last))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note(begun=_now(), host=socket.gethostname(), pid=os.getpid(), job=slurm.own_job())

    def end(self, why: str) -> None:
        """Write down how the attempt ended, unless one of its processes did before."""
        if (last := self.last) and last.why is None:
            self.note(ended=_now(), why=why)

    def note(self, **facts: Any) -> None:
        """Write down more about the attempt."""
        with self.path.open("a") as f:
            f.write("\n" + json.dumps(facts))  # first, to end a line that a kill cut short

    def all(self) -> list[Attempt]:
        """Return the attempts, oldest first."""
        found: list[dict[str, Any]] = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            if not line.endswith("}"):
                continue  # cut short
            facts = json.loads(line)
            if "begun" in facts:
                found.append(facts)
            elif found:
                found[-1].update(facts)
        return [Attempt(**facts) for facts in found]

    def finished(self) -> list[dict[str, Any]]:
        """Return the attempts as JSON-like mappings, the last of which finishes the stage now."""
        *before, last = self.all() or [Attempt(_now(), socket.gethostname(), os.getpid())]
        return [*map(asdict, before), {**asdict(last), "ended": _now(), "why": FINISHED}]

    def clear(self) -> None:
        """Forget them, when the stage is finished and its record has them."""
        self.path.unlink(missing_ok=True)

    @property
    def last(self) -> Attempt | None:
        """The newest attempt, which may be running."""
        attempts = self.all()
        return attempts[-1] if attempts else None

    @staticmethod
    def why(attempt: Attempt) -> str:
        """Return how an attempt that runs no more ended; asks Slurm if it did not say so itself."""
        if attempt.why:
            return attempt.why
        if attempt.job is None:
            return KILLED
        if attempt.job == slurm.own_job():
            return "requeued by Slurm"
        return SLURM_SAYS.get(slurm.state(attempt.job) or "", KILLED)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
