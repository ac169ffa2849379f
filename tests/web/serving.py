"""A dashboard for tests: over a made-up study, behind its guard, in this process or at a real socket."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, select
from waitress import wasyncore
from werkzeug.test import Client

from hpsearch.confusion import MATRIX_FILE, confusion, pictures
from hpsearch.pictures import Folder, Pictures
from hpsearch.settings import Settings
from hpsearch.storage.open import Database
from hpsearch.storage.tables import SYSTEM_ATTRIBUTES, TRIALS
from hpsearch.web.access import Access
from hpsearch.web.server import application, listen, make_server

TOKEN = "a-token-for-tests"
Opener = Callable[[Settings, Access], Client]
HOST = "127.0.0.1:8080"


def settings_for(folder: Path, url: str | None = None) -> Settings:
    """The settings of a home folder."""
    return Settings.from_environment(
        {"HPSEARCH_HOME": str(folder), "HPSEARCH_STORAGE": url or f"sqlite:///{folder}/s.db"}
    )


def local(**options: Any) -> Access:
    """A dashboard on loopback."""
    return Access("127.0.0.1", 8080, **options)


@contextmanager
def serving(settings: Settings, **options: Any) -> Iterator[str]:
    """A dashboard at a free port; its address."""
    listener = listen("127.0.0.1", 0)
    access = Access("127.0.0.1", listener.getsockname()[1], **options)
    with application(settings, access) as both:
        server = make_server(both, listener, access)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{access.port}"
        finally:
            with suppress(OSError):  # the loop, awake for something else, hung up before the trigger was pulled
                server.trigger.pull_trigger(lambda: hang_up(server))
            thread.join(30)
            server.task_dispatcher.shutdown()
            assert not thread.is_alive()


def hang_up(server: Any) -> None:
    """Close every connection and the listener: then the server's loop ends."""
    for channel in list(server.active_channels.values()):
        channel.handle_close()  # with the files that large answers wait in
    wasyncore.close_all(server._map)


def confuse(database: Database, folder: Path, study_id: int, name: str) -> None:
    """Give trial 0 of the study the files of a best trial."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 30, 900), random.integers(0, 30, 900)
    images = random.integers(0, 256, (900, 3, 8, 8), dtype=np.uint8)
    found = confusion([f"{name} {index}" for index in range(30)], labels, predicted)
    files = {MATRIX_FILE: found.to_json(), **pictures(found, labels, predicted, images)}
    with database.engine.begin() as connection:
        first = connection.scalars(select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)).first()
        for name, content in files.items():
            key, value = Pictures(Folder(folder / "artifacts")).save(name, content)
            row = {"trial_id": first, "key": key, "value_json": json.dumps(value)}
            connection.execute(insert(SYSTEM_ATTRIBUTES).values(row))
