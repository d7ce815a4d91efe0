"""Logs as a person reads them: their ends, without what says nothing."""

from __future__ import annotations

import re
from pathlib import Path

TAIL = 64 * 1024  # bytes at the end of a log that are read
ERROR = "palimpsest: error:"  # how `cli.main` begins a refusal
ATTEMPT = re.compile(r"^attempt \d+ at ")  # how `launch.run_stage` begins
OWN_FRAME = f'  File "{Path(__file__).parent}/'
RANK = re.compile(r"^\[rank\d+\]: ?")
NOISE = re.compile(
    r"cannot find -laio|collect2: error"  # DeepSpeed looks for a library that nobody needs
    r"|:\d+: \w*Warning: |^\s+warnings\.warn\(|\[(INFO|WARNING)\]|^\[?[WI]\d{4} "
    r"|\d%\|"  # a progress bar
)


def tail(path: Path) -> str:
    """Return the end of a file; nothing if there is no such file."""
    if not path.exists():
        return ""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - TAIL))
        return f.read().decode(errors="replace")


def last_lines(log: Path, most: int = 5) -> list[str]:
    """Return the lines at the end of a log that say why it ended; none if it is empty.

    They are a refusal of ours; or else the last exception, after the last frame that is ours; or
    else what was printed last. Of a log of several attempts, the last one counts.
    """
    lines = _readable(tail(log))
    began = max((n for n, line in enumerate(lines) if ATTEMPT.match(line)), default=-1)
    ends = lines[began + 1 :]
    errors = [n for n, line in enumerate(ends) if line.startswith(ERROR)]
    if errors:
        return ends[errors[-1] :][:most]
    traces = [n for n, line in enumerate(ends) if line.startswith("Traceback ")]
    if traces:
        return _exception(ends[traces[-1] + 1 :])
    return ends[-most:]


def _exception(lines: list[str]) -> list[str]:
    """Return the last frame of our package, if there is one, and the exception."""
    end = next((n for n, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    own = [line.strip() for line in lines[:end] if line.startswith(OWN_FRAME)]
    return [*own[-1:], *lines[end : end + 1]]


def _readable(text: str) -> list[str]:
    """Return lines as a terminal shows them in the end, without noise and the names of ranks."""
    shown = (RANK.sub("", line.rstrip().rpartition("\r")[2]) for line in text.split("\n"))
    return [line for line in shown if line.strip() and not NOISE.search(line)]
