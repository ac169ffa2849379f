"""Fixtures of the storage's tests: a study to damage, and one of a hundred trials."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsearch.spec import parse
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from tests.storage.sandbox import Sandbox
from tests.studies import TINY


@pytest.fixture
def sandbox(storage_url: str, tmp_path: Path) -> Iterator[Sandbox]:
    """On SQLite and on PostgreSQL."""
    with create(storage_url) as database:
        yield Sandbox(database, storage_url, tmp_path)


@pytest.fixture
def hundred(storage_url: str) -> Iterator[Database]:
    """An open database with the study `tiny`, which may have 100 trials."""
    with create(storage_url) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny", 100)
        yield database


@pytest.fixture
def study(hundred: Database) -> LoadedStudy:
    """The study `tiny`, whose first trial waits with known good values."""
    return load_study(hundred, "tiny")
