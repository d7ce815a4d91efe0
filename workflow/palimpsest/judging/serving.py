"""A judge's server: the first job that needs it starts it, and it ends when nobody asks any more.

    results/judges/<judge>/endpoint.json    where it answers, while it does
    results/judges/<judge>/launched.json    the job, or the process, that was started and has not
                                            answered yet
    results/judges/<judge>/used             when it was last needed, by its modification time
    results/logs/judges/<judge>.log

On a cluster the server is a job of its own, which `sbatch` starts; elsewhere it is a process that
stays behind. So it may die at any moment: the next job that asks starts another.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from palimpsest import slurm
from palimpsest.config import Judge
from palimpsest.files import read_json, write_json
from palimpsest.judging.endpoint import is_up
from palimpsest.lock import holder, locked

USED = "used"
POLL = 1.0  # seconds from one look to the next
LONGEST_PAUSE = 10.0  # seconds from one look of a job that waits to the next
LEAVING = 5.0  # seconds in which a server that is about to end may still be asked for
ENDING = 30.0  # seconds that a server is given to end
LAST_LINES = 15  # of a log, that are shown


def home(name: str, results: Path) -> Path:
    """Return the directory in which a judge's server is known."""
    return results / "judges" / name


def log(name: str, results: Path) -> Path:
    """Return the log of a judge's server."""
    return results / "logs" / "judges" / f"{name}.log"


def find(name: str, judge: Judge, results: Path, sbatch: str = "") -> str:
    """Return the URL at which a judge's server answers; it is started if there is none.

    Errors: ValueError with the end of its log if it ended before it answered; ValueError if it
    does not answer within `serving.start_minutes`.
    """
    place = home(name, results)
    place.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * judge.serving.start_minutes
    waits_for, pause = None, POLL
    while True:
        (place / USED).touch()
        if url := _answering(place):
            return url
        with _alone(place):
            server = _running(place)
            if server is None:
                if waits_for is not None and (place / "launched.json").exists():
                    raise ValueError(
                        f"the server of judge {name} ended before it answered:\n"
                        f"{_end_of(log(name, results))}"
                    )
                server = _launch(name, judge, results, sbatch)
                write_json(place / "launched.json", server)
        if waits_for is None:
            print(f"waiting for the server of judge {name}, {server}", flush=True)
        waits_for = server
        if time.monotonic() > deadline:
            raise ValueError(
                f"the server of judge {name} ({server}) has not answered within "
                f"{judge.serving.start_minutes:g} minutes (serving.start_minutes); its log, if it "
                f"has begun, is {log(name, results)}"
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)  # Slurm is asked each time


def serve(name: str, judge: Judge, results: Path) -> None:
    """Run a judge's server until it was not needed for `serving.idle_minutes`.

    Errors: ValueError if it ends by itself, or does not answer within `serving.start_minutes`;
    `palimpsest.lock.Held` if the judge is served already.
    """
    if judge.serving is None:
        raise ValueError(f"judge {name} has no `serving` in its config: nothing to start")
    place = home(name, results)
    signal.signal(signal.SIGTERM, _end)
    with locked(place):
        port = _free_port()
        command = judge.serving.command.format(
            model=judge.model,
            revision=judge.revision or "main",
            port=port,
            gpus=judge.resources.gpus,
        )
        print(command, flush=True)
        process = subprocess.Popen(shlex.split(command), start_new_session=True)
        host = socket.gethostname() if slurm.own_job() else "127.0.0.1"
        try:
            _attend(process, f"http://{host}:{port}/v1", judge, place)
        finally:
            (place / "endpoint.json").unlink(missing_ok=True)
            _stop(process)


def _attend(process: subprocess.Popen, url: str, judge: Judge, place: Path) -> None:
    """Wait until a server answers, say where, and return when it is needed no more."""
    deadline = time.monotonic() + 60 * judge.serving.start_minutes
    while not is_up(url):
        _check_runs(process)
        if time.monotonic() > deadline:
            raise ValueError(
                f"{url} has not answered within {judge.serving.start_minutes:g} minutes "
                "(serving.start_minutes)"
            )
        time.sleep(POLL)
    (place / USED).touch()
    (place / "launched.json").unlink(missing_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"url": url, "job": slurm.own_job(), "host": socket.gethostname(), "started": started}
    idle = 60 * judge.serving.idle_minutes
    while True:
        write_json(place / "endpoint.json", about)
        print(f"{url} answers", flush=True)
        while _unused(place) < idle:
            _check_runs(process)
            time.sleep(POLL)
        (place / "endpoint.json").unlink()
        time.sleep(min(LEAVING, idle))
        if _unused(place) >= idle:
            print(f"not needed for {judge.serving.idle_minutes:g} minutes: ended", flush=True)
            return


def _launch(name: str, judge: Judge, results: Path, sbatch: str) -> dict[str, Any]:
    """Start `palimpsest serve`, and return by which job or process it is known."""
    command = [sys.executable, "-m", "palimpsest.cli", "serve", name]
    output = log(name, results)
    output.parent.mkdir(parents=True, exist_ok=True)
    if slurm.own_job():
        return {"job": _submit(name, judge, shlex.join(command), output, sbatch)}
    with output.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    started = psutil.Process(process.pid).create_time()
    return {"host": socket.gethostname(), "pid": process.pid, "started": started}


def _submit(name: str, judge: Judge, command: str, output: Path, sbatch: str) -> str:
    """Submit a job with the account and partition of the one that asks, where `sbatch` says none.

    Errors: ValueError with what sbatch says.
    """
    needs = judge.resources
    options = [
        "--parsable",
        f"--job-name=palimpsest-serve-{name}",
        f"--comment=serve_{name}",
        f"--output={output}",
        "--open-mode=append",
        "--no-requeue",  # the next job that asks starts another
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={needs.cores}",
        f"--mem={needs.memory_mb}",
        f"--time={needs.minutes}",
        *([f"--gpus={needs.gpus}"] if needs.gpus else []),
        *_account_and_partition(),
        *shlex.split(sbatch),  # sbatch heeds the last of two
        f"--wrap=exec {command}",
    ]
    kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith("SLURM_")}
    run = subprocess.run(["sbatch", *options], capture_output=True, text=True, env=kept)
    if run.returncode:
        raise ValueError(f"the server of judge {name} cannot be submitted: {run.stderr.strip()}")
    return run.stdout.strip().partition(";")[0]


def _account_and_partition() -> list[str]:
    """Return the options of sbatch by which a job goes where this one went."""
    own = ["squeue", "-h", "-j", slurm.own_job() or "", "-o", "%a|%P"]
    run = subprocess.run(own, capture_output=True, text=True)
    names = zip(("account", "partition"), run.stdout.strip().split("|"), strict=False)
    return [f"--{option}={name}" for option, name in names if name not in ("", "(null)")]


def _answering(place: Path) -> str | None:
    """Return the URL that endpoint.json gives, if a server answers there."""
    about = _read(place / "endpoint.json")
    return about["url"] if about and is_up(about["url"]) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except ValueError:
        return None


def _running(place: Path) -> dict[str, Any] | None:
    """Return the server that was started last, or by hand, if it is alive or waits in the queue."""
    launched = _read(place / "launched.json")
    return launched if launched and _is_alive(launched) else holder(place)


def _is_alive(launched: dict[str, Any]) -> bool:
    """Whether a job is pending or running, or a process of this host runs."""
    if job := launched.get("job"):
        state = slurm.state(job)
        return state in ("PENDING", *slurm.ACTIVE) if state else slurm.is_active(job)
    try:
        process = psutil.Process(launched["pid"])
        same = process.create_time() == launched["started"]
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _check_runs(process: subprocess.Popen) -> None:
    if (code := process.poll()) is not None:
        raise ValueError(f"{shlex.join(process.args)}: the server has ended, with code {code}")


def _stop(process: subprocess.Popen) -> None:
    """End a server and all that it has started."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, ending)
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                continue


def _end(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _unused(place: Path) -> float:
    """Return the seconds since a server was last needed."""
    return time.time() - (place / USED).stat().st_mtime


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one job at a time look for a server and start it."""
    with (place / "launching").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_of(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"{path}: there is no log"
    return "\n".join([f"{path}:", *lines[-LAST_LINES:]])
