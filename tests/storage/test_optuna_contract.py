"""Optuna's own contract for storages, run on the storage that `open.py` returns."""

import gc
import warnings
from collections.abc import Iterator

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

from hpsearch.storage.open import create


class TestStorageContract(StorageTestCase):
    """Every test of Optuna's StorageTestCase, on SQLite and on PostgreSQL."""

    @pytest.fixture
    def storage(self, storage_url: str) -> Iterator[BaseStorage]:
        """A fresh storage for each test."""
        with create(storage_url) as database:
            yield database.storage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # some of these tests open a second storage and leave it
            gc.collect()
