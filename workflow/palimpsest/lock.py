"""One job at a time on a directory, on one machine or on many that share it.

    resume/lock.json    who holds it: Slurm job, host, process

Nothing has to be removed by hand after a kill: a holder that Slurm, or the process table of its
host, knows no more has lost its lock.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from palimpsest import slurm
from palimpsest.files import read_json, write_json

PATIENCE = 60.0  # seconds in which a holder that is ending may end
SETTLED = 0.5  # seconds after which of two jobs that take over at once only one still holds it


class Held(ValueError):
    """Another job, which is alive, holds the directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory; Held names the job that holds it, if it still does after a minute."""
    path = directory / "lock.json"
    directory.mkdir(parents=True, exist_ok=True)
    me = _me()
    _take(path, me)
    try:
        yield
    finally:
        if _holder(path) == me:
            path.unlink()


def holder(directory: Path) -> dict[str, Any] | None:
    """Return who holds a directory and may be alive: its job, host and process."""
    path = directory / "lock.json"
    found = _holder(path) if path.exists() else None
    return found if found and _is_alive(found, _me()) else None


def name(holder: dict[str, Any]) -> str:
    """Return what a holder is called."""
    who = f"job {holder['job']}" if holder["job"] else f"process {holder['pid']}"
    return f"{who} on {holder['host']}"


def _take(path: Path, me: dict[str, Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _created(path, me):
        holder = _holder(path)
        if holder is None:  # it was released in this moment
            continue
        if _is_alive(holder, me):
            if time.monotonic() > deadline:
                raise Held(_refusal(path, holder))
            time.sleep(1)
            continue
        print(f"{path.parent}: taken over from {name(holder)}, which has ended", flush=True)
        write_json(path, me)
        time.sleep(SETTLED)
        if _holder(path) == me:
            return


def _created(path: Path, me: dict[str, Any]) -> bool:
    """Create the lock, whole; False if there is one."""
    own = path.with_name(f".{path.name}.{me['host']}-{me['pid']}")
    try:
        own.write_text(json.dumps(me) + "\n")
        os.link(own, path)
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)
    return True


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except ValueError:
        return None if not path.exists() else {"job": None, "host": None, "pid": None}


def _me() -> dict[str, Any]:
    return {
        "job": slurm.own_job(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),  # another process may get the same pid
    }


def _is_alive(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether a holder still runs; one of which nobody can tell is taken to."""
    if holder["job"]:
        # An earlier run of this same job was ended by Slurm before this one began.
        return holder["job"] != me["job"] and slurm.is_active(holder["job"])
    if holder["host"] != me["host"]:
        return holder["host"] is not None
    try:
        return psutil.Process(holder["pid"]).create_time() == holder["started"]
    except psutil.NoSuchProcess:
        return False


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    stop = f"scancel {holder['job']}" if holder["job"] else f"kill {holder['pid']}"
    return (
        f"{path.parent}: {name(holder)} is at work here. Wait until it ends, or end it with "
        f"`{stop}`; what it has learnt is kept. If it is gone for certain, "
        f"remove {path}"
    )
