"""Fixtures of the dashboard's tests: a home folder with a made-up study."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, select
from werkzeug.test import Client

from benchmarks.filling import made_up
from hpsearch.artifacts import Pictures
from hpsearch.confusion import MATRIX_FILE, confusion, pictures
from hpsearch.settings import Settings
from hpsearch.storage.open import Database, create
from hpsearch.storage.tables import SYSTEM_ATTRIBUTES, TRIALS
from hpsearch.web.server import application
from tests.web.serving import Opener, settings_for


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose database holds one study with 40 trials, two of them running; tests only read it."""
    folder = tmp_path_factory.mktemp("home")
    with create(settings_for(folder).storage_url) as database:
        filled = made_up(database, "made-up", 40, 9)
        filled.fill(40, leave_running=2)
        filled.beat()
        _confuse(database, folder, filled.study.study_id)
    return folder


def _confuse(database: Database, folder: Path, study_id: int) -> None:
    """Give trial 0 of the study the files of a best trial."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 30, 900), random.integers(0, 30, 900)
    images = random.integers(0, 256, (900, 3, 8, 8), dtype=np.uint8)
    found = confusion([f"class {index} <b>" for index in range(30)], labels, predicted)
    files = {MATRIX_FILE: found.to_json(), **pictures(found, labels, predicted, images)}
    with database.engine.begin() as connection:
        first = connection.scalars(select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)).first()
        for name, content in files.items():
            key, value = Pictures(folder / "artifacts").save(name, content)
            row = {"trial_id": first, "key": key, "value_json": json.dumps(value)}
            connection.execute(insert(SYSTEM_ATTRIBUTES).values(row))


@pytest.fixture
def settings(home: Path) -> Settings:
    """The settings of that home folder."""
    return settings_for(home)


@pytest.fixture
def client() -> Iterator[Opener]:
    """Opens browsers without cookies that ask a dashboard directly."""
    with ExitStack() as opened:
        yield lambda settings, access: Client(opened.enter_context(application(settings, access)))
