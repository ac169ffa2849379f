"""A Slurm for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.launch.cluster import Cluster, missing, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm with two nodes; the tests that take it are skipped where it is not installed."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster
