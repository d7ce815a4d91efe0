"""Where a number comes from: the commit and the versions of what computed it."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "pyarrow", "numpy", "palimpsest")


@cache
def commit() -> str:
    """Return the commit of the code that runs, with "+changes" if it was edited; or "unknown"."""

    def git(*arguments: str) -> str:
        folder = str(Path(__file__).parent)
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    return {package: version(package) for package in PACKAGES}
