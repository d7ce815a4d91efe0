"""One Slurm cluster for all tests here, which one process runs: see tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import Cluster, missing


def pytest_runtest_setup() -> None:
    """Skip all tests here, in one line of pytest's report, where there can be no cluster."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session", name="cluster")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, from the first test that needs it to the last test."""
    with Cluster(tmp_path_factory.mktemp("cluster") / "slurm") as cluster:
        yield cluster
