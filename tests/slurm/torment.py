"""The torment of a study on a cluster: harm of nine kinds, done to what is there to be harmed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import wait_until
from palimpsest.attempts import Attempt, Attempts, checkpoints
from studies import StudyOnCluster

OUTAGE = (2.0, 8.0)  # seconds until what has failed is there again
PATIENCE = 15.0  # seconds in which an event may find a target, before another one is drawn
ADMIN = 5.0  # seconds from one look at held jobs and drained nodes to the next
DISK = "64m"  # size of the disk that can be full


class Tormentor:
    """Does harm to a study and its cluster; an outage ends by itself after some seconds."""

    def __init__(
        self, study: StudyOnCluster, stages: list[str], rng: random.Random, disk: bool
    ) -> None:
        """`stages` are those of the study; `disk` says whether results/ is a small disk."""
        self.study, self.stages, self.cluster, self.rng = study, stages, study.cluster, rng
        self.outages: dict[str, tuple[float, Callable[[], None]]] = {}  # what -> end, repair
        self.kinds: dict[str, Callable[[], str | None]] = {
            "kill a rank": self._kill_rank,
            "kill a batch step": self._kill_batch_step,
            "cancel a job": self._cancel,
            "requeue a job": self._requeue,
            "lose a node": self._lose_node,
            "kill slurmctld": self._kill_controller,
            "kill Snakemake": self._kill_snakemake,
            "cut a checkpoint": self._cut_checkpoint,
        }
        if disk:
            self.kinds["fill the disk"] = self._fill_disk
        self.drawn: list[str] = []
        self.waiting_since = self.next_round_of_admin = time.monotonic()

    def strike(self) -> tuple[str, str] | None:
        """Do the next event and return its kind and target; None while it has no target.

        All kinds are drawn before one is drawn again.
        """
        if not self.drawn:
            self.drawn = self.rng.sample(list(self.kinds), len(self.kinds))
        kind = self.drawn.pop(0)
        if target := self.kinds[kind]():
            self.waiting_since = time.monotonic()
            return kind, target
        if time.monotonic() - self.waiting_since < PATIENCE:
            self.drawn.insert(0, kind)
        else:
            self.drawn.append(kind)
        return None

    def mend(self, at_once: bool = False) -> None:
        """End the outages whose time has come, or all."""
        for what, (end, repair) in list(self.outages.items()):
            if at_once or time.monotonic() > end:
                repair()
                del self.outages[what]
                say(f"{what} is back")
        if "slurmctld" not in self.outages and time.monotonic() > self.next_round_of_admin:
            self.next_round_of_admin = time.monotonic() + ADMIN
            for job in self.cluster.release_held():
                say(f"job {job} was held by Slurm, and is released")

    def _training(self) -> list[tuple[str, Attempt]]:
        """The stages that take steps now, and the attempts that do."""
        found = []
        for stage in self.stages:
            last = Attempts(self._resume(stage)).last
            if not last or last.why or last.after_step is None:
                continue  # it has ended, or has not begun to take steps
            if last.pid in self.cluster.processes_of(last.job):
                found.append((stage, last))
        return found

    def _resume(self, stage: str) -> Path:
        return self.study.root / "results" / "stages" / stage / "resume"

    def _running(self, field: str = "%A") -> list[str]:
        """A field of squeue for each running job of the study; none while Slurm is away."""
        try:
            text = self.cluster.run("squeue", "-h", "-t", "R", "-o", f"%Z {field}", seconds=10)
        except (RuntimeError, subprocess.TimeoutExpired):
            return []
        rows = [line.split() for line in text.splitlines()]
        return sorted(row[1] for row in rows if row[0] == str(self.study.root) and len(row) > 1)

    def _fail(self, what: str, repair: Callable[[], None]) -> None:
        self.outages[what] = (time.monotonic() + self.rng.uniform(*OUTAGE), repair)

    def _slurm_is_hurt(self) -> bool:
        """Whether a part of Slurm is away: there is one such outage at a time."""
        return any(what.startswith(("node", "slurmctld")) for what in self.outages)

    def _kill_rank(self) -> str | None:
        if not (training := self._training()):
            return None
        stage, attempt = self.rng.choice(training)
        with suppress(ProcessLookupError):
            os.kill(attempt.pid, signal.SIGKILL)
        return f"process {attempt.pid} of job {attempt.job}, {stage}"

    def _kill_batch_step(self) -> str | None:
        if not (jobs := self._running()):
            return None
        job = self.rng.choice(jobs)
        try:
            os.kill(self.cluster.batch_step(job), signal.SIGKILL)
        except LookupError:  # it has ended in this moment
            return None
        return f"job {job}"

    def _cancel(self) -> str | None:
        return self._tell_slurm("scancel")

    def _requeue(self) -> str | None:
        return self._tell_slurm("scontrol", "requeue")

    def _tell_slurm(self, *command: str) -> str | None:
        if not (jobs := self._running()):
            return None
        job = self.rng.choice(jobs)
        try:
            self.cluster.run(*command, job)
        except RuntimeError:  # it has ended in this moment
            return None
        return f"job {job}"

    def _lose_node(self) -> str | None:
        if self._slurm_is_hurt() or not (nodes := self._running("%N")):
            return None
        node, noticed = self.rng.choice(nodes), self.rng.random() < 0.5
        self.cluster.kill_node(node)
        if noticed:
            down = ("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
            self.cluster.run(*down)
        self._fail(f"node {node}", lambda: self.cluster.start_node(node))
        return f"{node}, {'noticed' if noticed else 'not noticed'} by Slurm"

    def _kill_controller(self) -> str | None:
        if self._slurm_is_hurt():
            return None
        self.cluster.kill_controller()
        self._fail("slurmctld", self.cluster.start_controller)
        return "slurmctld"

    def _kill_snakemake(self) -> str | None:
        process = self.study.snakemake
        if process.poll() is not None:
            return None
        process.kill()
        process.wait()
        self._fail("Snakemake", self.study.start)
        return f"process {process.pid}"

    def _cut_checkpoint(self) -> str | None:
        """Crash a training, and take half of a file of the newest of its two checkpoints along."""
        have = [found for found in self._training() if len(checkpoints(self._resume(found[0]))) > 1]
        if not have:
            return None
        stage, attempt = self.rng.choice(have)
        with suppress(ProcessLookupError):
            os.kill(attempt.pid, signal.SIGKILL)
        wait_until(lambda: attempt.pid not in self.cluster.processes_of(attempt.job), 10, "its end")
        newest = checkpoints(self._resume(stage))[-1]
        file = self.rng.choice(sorted(newest.iterdir()))
        os.truncate(file, file.stat().st_size // 2)
        return f"{newest.name}/{file.name} of {stage}"

    def _fill_disk(self) -> str | None:
        if "the disk" in self.outages:
            return None
        filling = self.study.root / "results" / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as f:
            while True:
                f.write(bytes(2**16))
        self._fail("the disk", filling.unlink)
        return f"results/ by {filling.stat().st_size >> 20} MiB"


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Have a disk of little room at `path`, later a directory with what was there.

    The value is False where mounting is refused, and the path a directory all along.
    """
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "palimpsest-chaos", str(path)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            kept = shutil.copytree(path, path.with_name("kept"))
            subprocess.run(["umount", "--lazy", str(path)], check=True)
            path.rmdir()
            kept.rename(path)


def say(text: str) -> None:
    """Print what happens, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
