"""Fixtures that several test files share: a PostgreSQL, and both kinds of storage.

One thread, here and in the processes that tests start: how many lanes a worker has, and how sums round, must not depend
on the machine.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

if TYPE_CHECKING:
    from hpsearch.settings import Settings
    from hpsearch.storage.open import Database
    from tests.chain import Chain

from tests.cli import running
from tests.postgres import PostgresServer, running_server


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """A test that fails leaves no process behind; fixtures of a module end their own."""
    number = len(running.STARTED)
    yield
    running.kill_since(number)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run."""
    with running_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: every test that takes this runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'study.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chain"]:
    """A finished search with its confirmation; tests only read it, or add to it."""
    from hpsearch.storage.open import create
    from tests.chain import make

    folder = tmp_path_factory.mktemp("chain")
    with create(f"sqlite:///{folder / 'study.db'}") as database:
        yield make(database, folder)


@pytest.fixture
def settings(tmp_path: Path) -> "Settings":
    """Settings whose folders are all temporary."""
    from hpsearch.settings import Settings

    return Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")


@pytest.fixture
def database(storage_url: str) -> Iterator["Database"]:
    """An empty open database."""
    from hpsearch.storage.open import create

    with create(storage_url) as database:
        yield database


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator["Database"]:
    """An empty open database, for what does not depend on the kind of storage."""
    from hpsearch.storage.open import create

    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        yield database
