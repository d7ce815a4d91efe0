"""Questions to Slurm, by its own commands. Without Slurm every answer is None or empty."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 30  # seconds for an answer
OUT_OF_MEMORY = "DerivedExitCode=0:125"
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class Job:
    """A job that is pending or running."""

    id: str
    state: str  # PENDING, RUNNING, ...
    reason: str  # why it is pending
    nodes: str  # "" while it is pending
    waits_for: str  # jobs that must end before it may start
    comment: str  # see job_comment


@dataclass
class Usage:
    """What the runs of some jobs took together, by Slurm's accounting; a requeued job ran twice."""

    jobs: set[str] = field(default_factory=set)  # of which it knows
    runs: int = 0
    seconds: float = 0  # wall time, over all runs
    gpu_seconds: float = 0
    core_seconds: float = 0
    peak_memory_bytes: int = 0  # of one task


def own_job() -> str | None:
    """Return the id of the job that this process is part of."""
    return os.environ.get("SLURM_JOB_ID")


def job_comment(rule: str, *wildcards: str) -> str:
    """Return the comment that Snakemake's plugin gives to the Slurm job of a rule.

    The wildcards are in the order in which the rule's output names them.
    """
    words = [f"rule_{rule}", *(("wildcards", *wildcards) if wildcards else ())]
    return "_".join(words).replace("/", "_")


def queue(workdir: Path) -> list[Job]:
    """Return the jobs of this user that were submitted from a directory and have not ended."""
    form = "%A|%T|%r|%N|%E|%Z|%k"
    lines = (_ask("squeue", "-h", "-u", getpass.getuser(), "-o", form) or "").splitlines()
    rows = [line.split("|", 6) for line in lines]
    here = str(workdir.resolve())
    return [
        Job(id, state, reason, nodes, waits_for.replace("(null)", ""), comment)
        for id, state, reason, nodes, waits_for, where, comment in rows
        if where == here
    ]


def state(job: str) -> str | None:
    """Return the state of a job, such as RUNNING or OUT_OF_MEMORY; None if Slurm knows it not.

    The controller forgets a job minutes after its end (MinJobAge); the accounting does not.
    """
    found = _ask("squeue", "-h", "--states=all", "-j", job, "-o", "%T")
    if not found:
        found = _ask("sacct", "-n", "-P", "-j", job, "-o", "State")  # and those of its steps
    elif found == "FAILED" and OUT_OF_MEMORY in (_ask("scontrol", "-d", "show", "job", job) or ""):
        return "OUT_OF_MEMORY"  # of a step, which the job does not say of itself
    if found and "OUT_OF_MEMORY" in found:
        return "OUT_OF_MEMORY"
    return found.split()[0] if found else None  # "CANCELLED by 0"


def is_active(job: str) -> bool:
    """Whether a job has processes; one of which Slurm does not tell is taken to have some."""
    found = _ask("squeue", "-h", "-j", job, "-o", "%T")
    if found is None:  # either the job is not known any more, or Slurm does not answer at all
        return _ask("squeue", "-h", "-u", getpass.getuser()) is None
    return found in ACTIVE


def seconds_left() -> float | None:
    """Return how long this job may still run; None without Slurm or without a limit."""
    job = own_job()
    left = job and _ask("squeue", "-h", "-j", job, "-o", "%L")
    if not left or not re.fullmatch(r"(\d+-)?[\d:]+", left):
        return None
    days, _, clock = left.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * int(days or 0))


def requeue() -> bool:
    """Put this job back into the queue, which ends its present run; False if Slurm refuses."""
    return _ask("scontrol", "requeue", own_job() or "") is not None


def cancel(job: str) -> bool:
    """Cancel a job; its processes get SIGTERM first. False if Slurm refuses."""
    return _ask("scancel", job) is not None


def usage(jobs: Iterable[str], workdir: Path) -> Usage | None:
    """Return what some jobs took; None if there is no accounting, or it knows none of them.

    A job with the same id that was not submitted from `workdir` is one of another cluster or time.
    """
    jobs, here = list(jobs), str(workdir.resolve())
    fields = "JobIDRaw,ElapsedRaw,AllocTRES,MaxRSS,WorkDir"
    text = jobs and _ask("sacct", "-n", "-D", "-P", "-j", ",".join(jobs), "-o", fields)
    total = Usage()
    for line in (text or "").splitlines():
        id, seconds, tres, memory, where = line.split("|", 4)
        job, _, step = id.partition(".")
        if step and job in total.jobs:  # only steps have a memory, and no directory
            total.peak_memory_bytes = max(total.peak_memory_bytes, _bytes(memory))
        elif where == here:
            amounts = dict(part.split("=", 1) for part in tres.split(",") if "=" in part)
            total.jobs.add(job)
            total.runs += 1
            total.seconds += float(seconds)
            total.gpu_seconds += float(seconds) * int(amounts.get("gres/gpu", 0))
            total.core_seconds += float(seconds) * int(amounts.get("cpu", 0))
    return total if total.runs else None


def _bytes(text: str) -> int:
    """Read Slurm's 1234K, 5.6M or 7G; 0 where nothing was measured."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0


def _ask(*command: str) -> str | None:
    """Return what a command of Slurm prints; None if it is not there, fails or does not answer."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
