"""Find the processes of this machine and kill them; wait for what others do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], seconds: float, what: str, context: Callable[[], str] = str
) -> Answer:
    """Ask until the answer is true, and return it; a TimeoutError says what was waited for."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} seconds: {what}\n{context()}")
        time.sleep(0.1)
    return answer


def processes_with(**variables: str) -> set[psutil.Process]:
    """Return the processes that were started with these variables in their environment."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if variables.items() <= process.environ().items():
                found.add(process)
    return found


def processes_in(places: Iterable[Path], names: set[str]) -> set[psutil.Process]:
    """Return the processes of some names whose working directory is one of these."""
    wanted = {str(place) for place in places}
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() in names and process.cwd() in wanted:
                found.add(process)
    return found


def age(process: psutil.Process) -> tuple[float, int]:
    """Return a key that sorts processes from old to young, parents before children."""
    return process.create_time(), process.pid


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, parents first so that none acts on a child's death, and see them gone."""
    doomed = sorted(processes, key=age)
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(map(_lives, doomed)), 10, "killed processes are gone")


def _lives(process: psutil.Process) -> bool:
    """Whether a process is more than a zombie, which the machine may keep for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
