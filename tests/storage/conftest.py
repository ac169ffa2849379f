"""Fixtures of the storage's tests: a study to damage."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsearch.storage.open import create
from tests.storage.sandbox import Sandbox


@pytest.fixture
def sandbox(storage_url: str, tmp_path: Path) -> Iterator[Sandbox]:
    """On SQLite and on PostgreSQL."""
    with create(storage_url) as database:
        yield Sandbox(database, storage_url, tmp_path)
