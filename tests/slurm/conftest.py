"""One Slurm cluster for all tests here, in however many processes pytest runs them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from cluster import Cluster, missing, shared


def pytest_runtest_setup() -> None:
    """Skip all tests here, in one line of pytest's report, where there can be no cluster."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session", name="cluster")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, which the first process that needs it starts and the last one stops."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # what the workers have in common
    with shared(root / "slurm") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _turn(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep a test that is marked `alone` and those of other processes apart."""
    alone = request.node.get_closest_marker("alone") is not None
    with (cluster.directory / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
