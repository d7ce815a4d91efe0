"""From the command of a training stage to its processes: one a rank, on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time

GRACE = 10.0  # seconds that the other ranks have to end once one has failed


def run_ranks(command: list[str], ranks: int) -> int:
    """Run a command once for each rank, on this machine, and return their exit code.

    SIGTERM is passed on, and the ranks may take their time to checkpoint. Where a rank fails, the
    others would wait for it for ever: they are killed, and the first code that is not 0 is
    returned (torchrun would turn it into 1).
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)  # where the ranks meet, on a free port
    processes: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not in rank 0
    }
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(command, env={**os.environ, **common, **own}))
    return _exit_code(processes)


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
