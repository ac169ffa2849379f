"""A PostgreSQL that goes away: workers wait for it, and leave with their checkpoints if it takes too long."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import hpsearch, start
from tests.cli.test_commands import wait_for
from tests.postgres import PostgresServer, running_server
from tests.studies import TINY

LONG = ("--set", "training.epochs=10000", "--set", "pruner.name=none", "--trials", "1")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of its own, because it is stopped."""
    with running_server() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer, tmp_path: Path) -> str:
    """A database with one long study."""
    (tmp_path / "tiny.toml").write_text(TINY)
    url = server.new_database()
    hpsearch(tmp_path, "create-study", "tiny.toml", *LONG, HPSEARCH_STORAGE=url)
    return url


def working(folder: Path, url: str, wait_seconds: int) -> "subprocess.Popen[str]":
    """A worker that has recorded a few epochs."""
    process = start(
        folder,
        "worker",
        "tiny",
        HPSEARCH_STORAGE=url,
        HPSEARCH_DEVICE="cpu",
        HPSEARCH_STORAGE_WAIT_SECONDS=str(wait_seconds),
        HPSEARCH_LEASE_SECONDS="600",
    )
    while epochs(folder, url) < 3:
        assert process.poll() is None
    return process


def epochs(folder: Path, url: str) -> int:
    """Recorded epochs of the study's trial."""
    trials = json.loads(hpsearch(folder, "trials", "tiny", "--json", HPSEARCH_STORAGE=url).stdout)
    return sum(trial["epochs"] for trial in trials)


def test_a_worker_goes_on_when_the_storage_is_back(tmp_path: Path, server: PostgresServer, url: str) -> None:
    process = working(tmp_path, url, 120)
    try:
        server.stop()
        wait_for(tmp_path, "the storage does not answer", process)
        server.start()
        before = epochs(tmp_path, url)
        while epochs(tmp_path, url) <= before:
            assert process.poll() is None
    finally:
        process.terminate()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors + output


def test_a_worker_leaves_when_it_takes_too_long_and_nothing_is_lost(
    tmp_path: Path, server: PostgresServer, url: str
) -> None:
    process = working(tmp_path, url, 2)
    server.stop()
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert "the storage has failed for" in errors
    assert "Traceback" not in errors + output
    server.start()
    recorded = epochs(tmp_path, url)
    assert recorded >= 3
    hpsearch(tmp_path, "stop", "tiny", HPSEARCH_STORAGE=url)  # its lease is live: nobody else may take it
    assert epochs(tmp_path, url) == recorded


def test_commands_say_that_the_storage_is_away(tmp_path: Path, server: PostgresServer, url: str) -> None:
    server.stop()
    for command in ("status", "worker", "pause", "trials"):
        refused = hpsearch(tmp_path, command, "tiny", code=2, HPSEARCH_STORAGE=url)
        assert "cannot be opened" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
