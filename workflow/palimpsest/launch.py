"""From a stage to the processes that train it: one a rank, on one node or on several.

`palimpsest train` is the job of a stage. It holds the stage's lock, writes down the attempt, and
starts the ranks where there is more than one; a rank is `palimpsest train` with RANK set.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from palimpsest import slurm
from palimpsest.attempts import MEMORY, STOPPED, TIME, Attempts
from palimpsest.config import Model, Resources, load
from palimpsest.files import sha256, whole_file
from palimpsest.lineage import Stage
from palimpsest.lock import locked
from palimpsest.study import RESULTS, check_record

REQUEUE = 75  # exit code: stopped in good time with a checkpoint, to be started again
GRACE = 10.0  # seconds that the other ranks have to end once one has failed
MORE = 1.5  # times the memory, or the minutes, for each attempt that ran out of them
DECIDED = "PALIMPSEST_DECIDED"  # when Snakemake saw what is missing: seconds since the epoch


def run_stage(stage: Stage, train: Callable[[], int]) -> int:
    """Be the job of a stage: alone, written down, and put back into the queue where it stopped.

    `train` trains the stage in this process. Returns the exit code: REQUEUE for a stage that has
    stopped with a checkpoint. Errors: Held if another job works on the stage.
    """
    resources = load(Model, stage.model).resources
    directory = stage.resume(RESULTS)
    attempts = Attempts(directory)
    with locked(directory):
        if _taken_over(stage):
            return 0
        attempts.begin()
        print(f"attempt {len(attempts.all())} at {stage}: {_whereabouts()}", flush=True)
        code = run_ranks(resources) if resources.world_size > 1 else train()
        if code == 0:
            attempts.clear()
            return 0
        attempts.end(f"ended with exit code {code}")
        why = attempts.last.why
    # Slurm calls a job running that is near its limit, or is warned of its preemption; not one
    # that it is already ending, to cancel it or to start it again.
    job = slurm.own_job()
    if why in STOPPED and job and slurm.state(job) == "RUNNING" and slurm.requeue():
        print(f"{stage}: back in the queue as job {job}", flush=True)
    return REQUEUE if why in STOPPED else code


def job_resources(resources: Resources, attempts: Attempts) -> dict[str, int | str | None]:
    """Return what a stage asks of Snakemake, by the names of its Slurm plugin; None is not asked.

    On one node `gpu` becomes `--gpus`. Several nodes are an MPI job of one task a node, in whose
    allocation `run_ranks` starts the ranks.
    """
    ends = [Attempts.why(attempt) for attempt in attempts.all()]  # of the last one Slurm may know
    several = resources.nodes > 1
    per_node = f" --gpus-per-node={resources.gpus}" if resources.gpus else ""
    return {
        "mem_mb": round(resources.memory_mb * MORE ** ends.count(MEMORY)),
        "runtime": round(resources.minutes * MORE ** ends.count(TIME)),
        "nodes": resources.nodes,
        "gpu": None if several else resources.gpus or None,
        "mpi": "srun" if several else None,
        "tasks": resources.nodes if several else None,
        "slurm_extra": f"--ntasks-per-node=1{per_node}" if several else None,
    }


def _whereabouts() -> str:
    job = f"job {slurm.own_job()}, " if slurm.own_job() else ""
    return f"{job}process {os.getpid()} on {socket.gethostname()}"


def run_ranks(resources: Resources) -> int:
    """Run this command once for each rank, and return their exit code.

    SIGTERM is passed on, and the ranks may take their time to checkpoint. Where a rank fails, the
    others would wait for it for ever: they are killed, and the first code that is not 0 is
    returned. The store where the ranks meet is in this process, on a free port.
    """
    from torch.distributed import TCPStore

    several = resources.nodes > 1
    host = socket.gethostname() if several else "127.0.0.1"
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    common = {
        **os.environ,
        "WORLD_SIZE": str(resources.world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not in rank 0
    }
    command = [sys.executable, "-m", "palimpsest.cli", *sys.argv[1:]]
    processes: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    if several:
        processes.append(subprocess.Popen(_by_srun(resources, command), env=common))
    else:
        for rank in range(resources.world_size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = {**common, **own}
            processes.append(
                subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)
            )
    return _exit_code(processes)


def _by_srun(resources: Resources, command: list[str]) -> list[str]:
    """Return the command that runs another once for each rank, over the nodes of this job."""
    ranks = resources.gpus or resources.ranks
    as_rank = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec " + shlex.join(command)
    return [
        "srun",
        f"--nodes={resources.nodes}",
        f"--ntasks={resources.world_size}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={resources.cores // ranks}",
        *([f"--gpus-per-node={resources.gpus}"] if resources.gpus else []),
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "bash",
        "-c",
        as_rank,
    ]


def _exit_code(processes: list[subprocess.Popen]) -> int:
    """Wait for all processes; return the code of the first that ended with another than 0."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        code = code or next((p.returncode for p in processes if p.returncode), 0)
        deadline = min(deadline, time.monotonic() + GRACE) if code else deadline
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    code = code or next((p.returncode for p in processes if p.returncode), 0)
    return code if code >= 0 else 128 - code  # killed by a signal: as a shell says it


def _die_with_parent() -> None:
    """Have Linux kill this process when the one that started it is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _taken_over(stage: Stage) -> bool:
    """Put back the record of a stage that was finished after Snakemake had decided to train it.

    Another job, of a Snakemake that was killed, has trained it in the meantime. Snakemake has
    removed the record, which is the output of the rule, before this job began.
    """
    kept, out = stage.resume(RESULTS) / "stage.json", stage.directory(RESULTS)
    decided = float(os.environ.get(DECIDED, "inf"))
    if not kept.exists() or kept.stat().st_mtime < decided:
        return False
    files = check_record(kept, stage)["files"]
    if not all((out / f).is_file() and sha256(out / f) == digest for f, digest in files.items()):
        return False
    with whole_file(out / "stage.json") as partial:
        shutil.copy2(kept, partial)
    print(f"{stage}: another job has finished it since this run began", flush=True)
    return True
