"""Snakemake as a person runs it, in a workspace: a process of its own, with its output as text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # the workspace is made there

from workspace import REPOSITORY, STUDY, change, make_workspace, write

JOB = re.compile(r"^Job \d+: (.*)$", re.MULTILINE)
NOTHING = "Nothing to be done"
STUDY_HERE = {
    **STUDY,
    "methods": ["moelora", "replay"],
    "references": {"joint": {"title": "Joint", "protocol": "joint", "method": "lora"}},
}
MOELORA, REPLAY = "three/tiny/moelora/seed-0", "three/tiny/replay/seed-0"
JOINT = "three/tiny/lora/seed-0/choice+counting+reading"


class Run(NamedTuple):
    """How a command ended, and everything that it printed."""

    code: int
    text: str

    @property
    def jobs(self) -> set[str]:
        """The messages of the jobs that were run or planned."""
        return set(JOB.findall(self.text))


def new_workspace(path: Path) -> Path:
    """Make a workspace whose study `tiny` has seven stages that checkpoint after every step."""
    make_workspace(path)
    write(path, "tiny", STUDY_HERE)
    change(path, "models/tiny", resources__checkpoint_steps=1)
    return path


def cloned(path: Path) -> Path:
    """Make a directory as a clone has it, with the shipped studies, and return it."""
    shutil.copy(REPOSITORY / "Snakefile", path)
    for name in ("config", "profiles", "rules"):
        shutil.copytree(REPOSITORY / name, path / name)
    (path / "workflow").symlink_to(REPOSITORY / "workflow")
    return path


def copy_of(root: Path, path: Path) -> Path:
    """Copy a workspace as it is, with the times of its files, to change the copy."""
    return shutil.copytree(root, path, symlinks=True)


def start(root: Path, *command: str) -> subprocess.Popen:
    """Start a command of the environment in a workspace, with its package from the workspace."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str((root / "workflow").resolve()),
    }
    return subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> Run:
    """Wait for a command and return how it ended."""
    text, _ = process.communicate(timeout=1500)
    return Run(process.returncode, text)


def run(root: Path, *command: str) -> Run:
    """Run a command of the environment in a workspace."""
    return finish(start(root, *command))


def snakemake_command(*arguments: str, study: str = "tiny") -> list[str]:
    """Return the command line that this machine's profile makes of a study."""
    profile = ["--profile", "profiles/local", "--cores", "2"]
    return ["snakemake", *arguments, *profile, "--config", f"study={study}"]


def snakemake(root: Path, *arguments: str, study: str = "tiny") -> Run:
    """Run Snakemake in a workspace."""
    return run(root, *snakemake_command(*arguments, study=study))


def planned(root: Path, *arguments: str, study: str = "tiny") -> set[str]:
    """Return the messages of the jobs that Snakemake would run."""
    found = snakemake(root, "--dry-run", *arguments, study=study)
    assert found.code == 0, found.text
    assert found.jobs or NOTHING in found.text, found.text
    return found.jobs


def succeed(root: Path, *arguments: str, study: str = "tiny") -> Run:
    """Run Snakemake, which must succeed."""
    found = snakemake(root, *arguments, study=study)
    assert found.code == 0, found.text
    return found


def stage_record(root: Path, stage: str) -> Path:
    """Return the record of a stage, which stands there once the stage is finished."""
    return root / "results" / "stages" / stage / "stage" / "stage.json"


def times(root: Path) -> dict[str, int]:
    """Return when each file of the results was written, without logs."""
    files = [path for path in (root / "results").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in files
        if path.suffix != ".log"
    }


__all__ = ["REPOSITORY", "change", "write"]
