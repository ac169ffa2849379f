"""Fixtures of the dashboard's tests: a home folder with a made-up study."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from werkzeug.test import Client

from benchmarks.filling import made_up
from hpsearch.settings import Settings
from hpsearch.storage.open import create
from hpsearch.web.server import application
from tests.web.serving import Opener, confuse, settings_for


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose database holds one study with 40 trials, two of them running; tests only read it."""
    folder = tmp_path_factory.mktemp("home")
    with create(settings_for(folder).storage_url) as database:
        filled = made_up(database, "made-up", 40, 9)
        filled.fill(40, leave_running=2)
        filled.beat()
        confuse(database, folder, filled.study.study_id, "class <b>")
    return folder


@pytest.fixture
def settings(home: Path) -> Settings:
    """The settings of that home folder."""
    return settings_for(home)


@pytest.fixture
def client() -> Iterator[Opener]:
    """Opens browsers without cookies that ask a dashboard directly."""
    with ExitStack() as opened:
        yield lambda settings, access: Client(opened.enter_context(application(settings, access)))
