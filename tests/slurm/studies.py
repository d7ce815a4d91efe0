"""A study on the cluster: a workspace with the Slurm profile, Snakemake in it, its jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))  # the workspace is made there

from palimpsest.attempts import Attempt, Attempts
from processes import wait_until
from runs import Run, change, copy_of, new_workspace, stage_record, write

HERE = Path(__file__).parent
LONG = 20  # epochs: a stage of 240 steps takes some ten seconds on a core of its own
STAGE = "three/tiny/replay/seed-0/choice"


def slurm_workspace(path: Path) -> Path:
    """Make a workspace whose Slurm profile is that of the test cluster; a stage takes a while."""
    new_workspace(path)
    change(path, "models/tiny", resources__checkpoint_steps=10, resources__memory_mb=1500)
    change(path, "methods/lora", training__epochs=LONG)
    profile = path / "profiles" / "slurm" / "config.yaml"
    settings = yaml.safe_load(profile.read_text())
    settings["default-resources"] |= {"slurm_account": "ci", "mem_mb": 1000, "runtime": 10}
    settings |= {"latency-wait": 10, "slurm-init-seconds-before-status-checks": 1}
    profile.write_text(yaml.safe_dump(settings))
    return path


class StudyOnCluster:
    """Snakemake with the Slurm profile in a workspace, for one target at a time."""

    def __init__(self, cluster, root: Path) -> None:
        self.cluster, self.root = cluster, root
        self.output = root / "snakemake.out"
        self.snakemake: subprocess.Popen | None = None

    def start(self, *arguments: str, study: str = "tiny") -> None:
        """Start Snakemake; what it prints is added to `output`."""
        command = [sys.executable, str(HERE / "polling.py"), *arguments]
        command += ["--profile", "profiles/slurm", "--config", f"study={study}"]
        with self.output.open("a") as out:
            self.snakemake = subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a person who works on the cluster."""
        return {
            **os.environ,
            **self.cluster.environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str((self.root / "workflow").resolve()),
            "OMP_NUM_THREADS": "1",
        }

    def train(self, *arguments: str, stage: str = STAGE) -> None:
        """Start Snakemake for one stage."""
        target = str(stage_record(self.root, stage).relative_to(self.root))
        self.start(target, *arguments)

    def finish(self, seconds: float = 240) -> Run:
        """Wait until Snakemake ends, and return how."""
        code = self.snakemake.wait(timeout=seconds)
        return Run(code, self.text)

    def end(self) -> None:
        """Kill Snakemake and cancel every job, if there are any."""
        if self.snakemake and self.snakemake.poll() is None:
            self.snakemake.kill()
            self.snakemake.wait()
        for job in self.queue():
            self.cluster.run("scancel", job.split()[0], check=False)

    def queue(self) -> list[str]:
        """The jobs that Slurm has not done with: id, state, comment."""
        lines = self.cluster.run("squeue", "-h", "-o", "%Z|%A %T %k", check=False).splitlines()
        rows = [line.split("|", 1) for line in lines]
        return [text for where, text in rows if where == str(self.root)]

    def succeed(self, *arguments: str, study: str = "tiny") -> Run:
        """Run Snakemake, which must succeed."""
        self.start(*arguments, study=study)
        found = self.finish(600)
        assert found.code == 0, found.text
        return found

    @property
    def text(self) -> str:
        """Everything that Snakemake has printed."""
        return self.output.read_text()

    def log(self, stage: str = STAGE) -> str:
        """The log of all attempts at a stage."""
        return (self.root / "results" / "stages" / stage / "resume" / "train.log").read_text()

    def attempts(self, stage: str = STAGE) -> list[Attempt]:
        """The attempts at a stage: of its record if it is finished."""
        record = stage_record(self.root, stage)
        if record.exists():
            return [Attempt(**facts) for facts in json.loads(record.read_text())["attempts"]]
        return Attempts(self.root / "results" / "stages" / stage / "resume").all()

    def files(self, stage: str = STAGE) -> dict[str, str]:
        """The checksum of each file that a stage hands on."""
        return json.loads(stage_record(self.root, stage).read_text())["files"]

    def wait_for_step(self, step: int, stage: str = STAGE) -> Attempt:
        """Wait until a stage has taken a step; return the attempt that did."""
        metrics = self.root / "results" / "stages" / stage / "resume" / "metrics.jsonl"

        def reached() -> bool:
            assert self.snakemake.poll() is None, self.text
            rows = metrics.read_text().splitlines() if metrics.exists() else []
            return bool(rows) and int(re.search(r'"step": (\d+)', rows[-1])[1]) >= step

        wait_until(reached, 120, f"step {step} of {stage}", lambda: self.text)
        return self.attempts(stage)[-1]

    def job_lines(self, *fields: str) -> list[list[str]]:
        """What accounting says of the jobs that were submitted here, one list of values a job."""
        wanted = ",".join(["WorkDir", *fields])
        since = ("-S", "now-1days")  # else since midnight
        text = self.cluster.run("sacct", "-n", "-X", "-P", *since, "--delimiter=\t", "-o", wanted)
        rows = [line.split("\t") for line in text.splitlines()]
        return [row[1:] for row in rows if row[0] == str(self.root)]


__all__ = ["change", "copy_of", "stage_record", "wait_until", "write"]
