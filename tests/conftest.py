"""Settings for all tests; the variables must be set before torch is imported."""

import os

from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network

# Cores are shared, so a slow example is no failure; the same examples each time.
settings.register_profile("palimpsest", deadline=None, derandomize=True)
settings.load_profile("palimpsest")


class _Scheduling(LoadScopeScheduling):
    """A module's tests go to one process; all tests of tests/slurm do, for they share a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    """Tell pytest-xdist which tests belong together."""
    return _Scheduling(config, log)
