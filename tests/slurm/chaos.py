"""The chaos campaign: a study is tormented on a cluster, and must end as one left in peace.

    python tests/slurm/chaos.py --events 100 --seed 1        # or: make chaos EVENTS=100 SEED=1

A round runs two methods on three tasks with the Slurm profile, while at random moments a process,
a job, a node, Slurm's controller, Snakemake, a checkpoint or the disk is harmed. When Snakemake
gives up it is started again with the same command, which is all that a user would do. Rounds
follow until all events have happened. The seed decides the events, as far as time permits.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path

import studies  # before the others: it says where the modules of tests/workflow are
from cluster import Cluster, missing, wait_until
from palimpsest.files import read_json, sha256
from runs import REPOSITORY, change, copy_of, finish, snakemake_command, start
from studies import StudyOnCluster
from torment import Tormentor, say, small_disk
from workspace import TASKS, convert, forget

METHODS = ("lora", "replay")
TICK = 0.3  # seconds between two looks at the study
PER_ROUND = 25  # events at most
FORGOTTEN = 60.0  # seconds without any progress, and without a job, before Snakemake is restarted
STALLED = 300.0  # seconds without any progress after which a campaign is given up


class Stalled(Exception):
    """Nothing has moved for a long time; the text is all that there is to see."""


@dataclass
class Summary:
    """What a campaign came to."""

    seeds: list[int] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)  # events that this machine does not allow
    snakemake_errors: int = 0  # ends with an error, its retries used up
    forgotten: int = 0  # times that Slurm had forgotten the jobs that Snakemake waited for
    attempts: dict[str, int] = field(default_factory=dict)  # by seed and stage
    resumes: int = 0
    restarts_from_zero: int = 0
    killed_before_training: int = 0  # while it started
    steps: int = 0
    steps_taken_again: int = 0
    wall_seconds: float = 0
    differences: list[str] = field(default_factory=list)  # files that are not as they should be
    left_in_queue: list[str] = field(default_factory=list)  # jobs that outlived their study

    @property
    def snakemake_starts(self) -> int:
        """How often the command was given: once a round, and after each end of Snakemake."""
        again = self.snakemake_errors + self.forgotten + self.events["kill Snakemake"]
        return len(self.seeds) + again

    @property
    def identical(self) -> bool:
        """Whether every round has handed on what a study in peace does, and nothing else."""
        return bool(self.seeds) and not self.differences and not self.left_in_queue

    def as_json(self) -> str:
        """The summary for programs."""
        derived = {"snakemake_starts": self.snakemake_starts, "identical": self.identical}
        return json.dumps(vars(self) | derived, indent=2)

    def as_text(self) -> str:
        """The summary for a person."""
        lines = [
            ("seeds", ", ".join(map(str, self.seeds))),
            ("events", str(self.events.total())),
            *((f"  {kind}", str(number)) for kind, number in sorted(self.events.items())),
            *((f"  {kind}", "not possible on this machine") for kind in self.left_out),
            (
                "Snakemake starts",
                f"{self.snakemake_starts}, {self.snakemake_errors} after errors, "
                f"{self.forgotten} as Slurm had forgotten its jobs",
            ),
            ("attempts", f"{sum(self.attempts.values())} at {len(self.attempts)} stages"),
            *((f"  {stage}", str(number)) for stage, number in self.attempts.items()),
            ("resumes", str(self.resumes)),
            ("restarts from zero", str(self.restarts_from_zero)),
            ("killed before training", str(self.killed_before_training)),
            ("steps taken again", f"{self.steps_taken_again} of {self.steps}"),
            ("wall time", f"{self.wall_seconds / 60:.1f} min"),
            *(("differs", file) for file in self.differences),
            *(("left in the queue", job) for job in self.left_in_queue),
            ("tables identical", "yes" if self.identical else "no"),
        ]
        return "\n".join(f"{name:<64}{value}" for name, value in lines)


class Witness:
    """Looks at a study: what moves in it, and which steps were taken more than once."""

    def __init__(self, study: StudyOnCluster, stages: list[str]) -> None:
        self.study = study
        self.places = [study.root / "results" / "stages" / stage for stage in stages]
        self.steps = dict.fromkeys(self.places, 0)
        self.taken_again = 0
        self.seen: tuple = ()
        self.moved = time.monotonic()

    @property
    def idle(self) -> float:
        """The seconds in which nothing has moved."""
        return time.monotonic() - self.moved

    def look(self) -> None:
        """Note what has changed; Stalled, with a picture, if nothing has for a long time."""
        for place in self.places:
            metrics = place / "resume" / "metrics.jsonl"
            step = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            self.taken_again += max(0, self.steps[place] - step)
            self.steps[place] = step
        done = [(p / "stage" / "stage.json").exists() for p in self.places]
        scored = [len([*place.glob("cells/*/*/*/scores.json")]) for place in self.places]
        seen = (*self.steps.values(), *done, *scored)
        if seen != self.seen:
            self.seen, self.moved = seen, time.monotonic()
        if self.idle > STALLED:
            raise Stalled(picture(self.study))


class Campaign:
    """Rounds of torment, until all events have happened."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        tasks: int = 3,
        epochs: int = 60,
        pause: tuple[float, float] = (3.0, 8.0),
    ) -> None:
        """Work in `directory`, on lineages of `tasks` stages, each of `epochs` epochs.

        `pause` is the least and the most time from one event to the next, in seconds.
        """
        self.cluster, self.directory, self.pause = cluster, directory, pause
        self.prepared = prepare(directory / "prepared", epochs, tasks)
        lineages = ["/".join(TASKS[: n + 1]) for n in range(tasks)]
        self.stages = [f"three/tiny/{m}/seed-0/{lineage}" for m in METHODS for lineage in lineages]
        self.summary = Summary()

    def run(self, events: int, seed: int) -> Summary:
        """Do a number of events; Stalled if a round comes to no end."""
        begun, summary = time.monotonic(), self.summary
        alone = copy_of(self.prepared, self.directory / "alone")
        undisturbed = start(alone, *snakemake_command())  # beside the first round
        try:
            while summary.events.total() < events:
                self._round(seed, min(PER_ROUND, events - summary.events.total()))
                seed += 1
            ended = finish(undisturbed)
        finally:
            undisturbed.terminate()
        if ended.code != 0:
            raise RuntimeError(f"{alone}: the study fails even in peace\n{ended.text}")
        for seed in summary.seeds:
            differs = outcome(alone) ^ outcome(self._workspace(seed))
            summary.differences += sorted({f"round {seed}: {file}" for file, _ in differs})
        summary.wall_seconds = time.monotonic() - begun
        return summary

    def _workspace(self, seed: int) -> Path:
        return self.directory / f"round-{seed}"

    def _round(self, seed: int, events: int) -> None:
        """Torment a study with some events until it has ended."""
        say(f"round with seed {seed}: up to {events} events")
        root = self._workspace(seed)
        with small_disk(root / "results") as disk:
            shutil.copytree(self.prepared, root, symlinks=True, dirs_exist_ok=True)
            study = StudyOnCluster(self.cluster, root)
            tormentor = Tormentor(study, self.stages, random.Random(seed), disk)
            if not disk:
                say("a small disk cannot be mounted here: none will be filled")
                self.summary.left_out = ["fill the disk"]
            try:
                self._torment(study, tormentor, events)
                self._account(study, seed)
            finally:
                leave_in_peace(study, tormentor)

    def _torment(self, study: StudyOnCluster, tormentor: Tormentor, events: int) -> None:
        """Run a study with some events, and in peace when they have happened."""
        summary, witness, planned = self.summary, Witness(study, self.stages), events
        study.start()
        due = time.monotonic() + tormentor.rng.uniform(*self.pause)
        while study.snakemake.poll() != 0:
            time.sleep(TICK)
            witness.look()
            tormentor.mend()
            if study.snakemake.poll() and "Snakemake" not in tormentor.outages:
                say(f"Snakemake has ended with exit code {study.snakemake.returncode}: again")
                summary.snakemake_errors += 1
                study.start()
            if witness.idle > FORGOTTEN and not tormentor.outages and not study.queue():
                say("Slurm has forgotten the jobs that Snakemake waits for: Snakemake again")
                summary.forgotten += 1
                study.end()
                study.start()
                witness.moved = time.monotonic()
            if events and time.monotonic() > due and (event := tormentor.strike()):
                kind, target = event
                summary.events[kind] += 1
                say(f"event {summary.events.total()}: {kind}: {target}")
                events -= 1
                due = time.monotonic() + tormentor.rng.uniform(*self.pause)
        witness.look()
        say(f"the study has ended, after {planned - events} events")
        summary.steps += sum(witness.steps.values())
        summary.steps_taken_again += witness.taken_again

    def _account(self, study: StudyOnCluster, seed: int) -> None:
        """Add what a round's study says of itself, and the jobs that it has left behind."""
        summary = self.summary
        summary.seeds.append(seed)
        for stage in self.stages:
            first, *later = study.attempts(stage)
            summary.attempts[f"round {seed}: {stage}"] = 1 + len(later)
            summary.resumes += sum(bool(attempt.after_step) for attempt in later)
            summary.restarts_from_zero += sum(attempt.after_step == 0 for attempt in later)
            stillborn = [attempt for attempt in (first, *later) if attempt.after_step is None]
            summary.killed_before_training += len(stillborn)
        with suppress(TimeoutError):
            wait_until(lambda: not study.queue(), 10, "an empty queue")
        summary.left_in_queue += [f"round {seed}: {job}" for job in study.queue()]


def prepare(root: Path, epochs: int, tasks: int) -> Path:
    """Make the workspace that the rounds begin with, the data converted."""
    studies.slurm_workspace(root)
    (root / "workflow").unlink()  # a copy: the package may be worked on in the meantime
    shutil.copytree(REPOSITORY / "workflow", root / "workflow")
    change(root, "tiny", methods=list(METHODS), references={})
    change(root, "methods/lora", training__epochs=epochs)
    change(root, "benchmarks/three", orders={"first": list(TASKS[:tasks])})
    with chdir(root):
        convert(*TASKS[:tasks])
    forget()
    return root


def outcome(root: Path) -> set[tuple[str, str]]:
    """Return what a study hands on: its matrix and every file of every stage, with checksums."""
    results = root / "results"
    files = [results / "reports" / "tiny" / "matrix.csv"]
    for record in (results / "stages").glob("**/stage/stage.json"):
        files += [record.parent / name for name in read_json(record)["files"]]
    return {(str(file.relative_to(results)), sha256(file)) for file in files}


def leave_in_peace(study: StudyOnCluster, tormentor: Tormentor) -> None:
    """Undo all harm; then end what still runs of a study."""
    tormentor.mend(at_once=True)
    study.end()
    wait_until(lambda: not study.queue(), 60, "the end of all jobs")


def picture(study: StudyOnCluster) -> str:
    """Return all that there is to see of a study that does not move."""
    root = study.root
    stages = root / "results" / "stages"
    logs = [*stages.glob("**/resume/attempts.jsonl"), *stages.glob("**/resume/train.log")]
    logs += sorted(root.glob("results/logs/slurm/**/*.log"), key=lambda p: p.stat().st_mtime)[-5:]
    shown = [
        ("squeue", study.cluster.run("squeue", "-a", check=False)),
        ("sinfo", study.cluster.run("sinfo", check=False)),
        *((str(log.relative_to(root)), tail(log.read_text(), 15)) for log in logs),
        ("Snakemake", tail(study.text, 60)),
    ]
    return "\n".join(f"== {name}\n{text}" for name, text in shown)


def tail(text: str, lines: int) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.splitlines()[-lines:])


def main() -> int | str:
    """Do a campaign on a cluster of its own; return the exit status or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the summary as JSON")
    args = parser.parse_args()
    if reason := missing():
        return reason
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without cleaning up
    directory = Path(tempfile.mkdtemp(prefix="palimpsest-chaos-"))
    out = args.out or directory / "summary.json"
    with Cluster(directory / "slurm") as cluster:
        campaign = Campaign(cluster, directory)
        try:
            summary = campaign.run(args.events, args.seed)
        except Stalled as stalled:
            return f"{stalled}\nNothing has moved for {STALLED:.0f} seconds. All is in {directory}"
    out.write_text(summary.as_json() + "\n")
    print(f"{summary.as_text()}\nas JSON in {out}")
    return 0 if summary.identical else 1


if __name__ == "__main__":
    sys.exit(main())
