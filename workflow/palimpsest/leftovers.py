"""What a Snakemake that was killed has left behind: its lock, and its jobs in Slurm's queue."""

from __future__ import annotations

import fcntl
import shutil
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from palimpsest import slurm
from palimpsest.attempts import Attempts
from palimpsest.lineage import Stage
from palimpsest.slurm import Job

SNAKEMAKE = Path(".snakemake")
OF_SNAKEMAKE = "rule_"  # how the comments of its jobs begin


def hold_directory() -> tuple[bool, IO[str]]:
    """Be a Snakemake of the working directory until the returned file is closed, by any death.

    The first value says whether there is no other; then locks that are there are of a dead one,
    and are removed. A Snakemake on another host counts as alive: not every file system tells.
    """
    SNAKEMAKE.mkdir(exist_ok=True)
    held = (SNAKEMAKE / "controllers").open("a+")
    held.seek(0)
    host, alone = socket.gethostname(), False
    known = held.read().split()
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = set(known) <= {host}
        fcntl.flock(held, fcntl.LOCK_SH)
    except BlockingIOError:
        fcntl.flock(held, fcntl.LOCK_SH)
    except OSError:  # a file system without locks
        return False, held
    if alone and any((SNAKEMAKE / "locks").glob("*")):
        _say("An earlier Snakemake was killed here; the locks that it left are removed.")
        shutil.rmtree(SNAKEMAKE / "locks")
    if host not in known:
        held.write(f"{host}\n")
        held.flush()
    return alone, held


@dataclass(frozen=True)
class Leftovers:
    """The jobs of other runs of Snakemake in this directory."""

    training: dict[Stage, Job]  # the new job of such a stage waits for this one
    useless: list[Job]  # short ones, and those that wait for others: they are submitted anew

    def take_over(self, results: Path) -> None:
        """Say what is left and what will be done with it; cancel what is submitted anew.

        Below `results` stands how far a training has come.
        """
        if not self.training and not self.useless:
            return
        _say(f"{len(self.training) + len(self.useless)} jobs of an earlier run are in the queue:")
        for stage, job in self.training.items():
            _say(
                f"  job {job.id} trains {stage} ({_where(stage, job, results)}): it goes on; the "
                "new job of this stage waits for it, and takes over what it has learnt"
            )
        for job in self.useless:
            slurm.cancel(job.id)
            _say(f"  job {job.id}, {job.comment} ({job.state.lower()}): cancelled, and run anew")


def left_in_queue(stages: Iterable[Stage], workdir: Path, alone: bool) -> Leftovers:
    """Ask Slurm which jobs of other runs are in the queue; none where there is no Slurm.

    While another Snakemake is alive (not `alone`), no job is useless: it may be one of its own.
    """
    of = {slurm.job_comment("train", stage.path): stage for stage in stages}
    training, useless = {}, []
    for job in slurm.queue(workdir):
        if job.comment in of and not job.waits_for and of[job.comment] not in training:
            training[of[job.comment]] = job
        elif alone and job.comment.startswith(OF_SNAKEMAKE) and not _trains_elsewhere(job, of):
            useless.append(job)
    return Leftovers(training, useless)


def _say(text: str) -> None:
    """Print where Snakemake prints; its standard output may be a graph."""
    print(text, file=sys.stderr, flush=True)


def _trains_elsewhere(job: Job, of: dict[str, Stage]) -> bool:
    """Whether a job trains a stage of another study, which is none of ours."""
    return job.comment.startswith("rule_train_") and job.comment not in of


def _where(stage: Stage, job: Job, results: Path) -> str:
    if job.state == "PENDING":
        return f"pending: {job.reason}"
    last = Attempts(stage.resume(results)).last
    since = f", from step {last.after_step} of {last.num_steps}" if last and last.num_steps else ""
    return f"{job.state.lower()} on {job.nodes}{since}"
