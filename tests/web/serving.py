"""A dashboard for tests: over a made-up study, behind its guard, in this process or at a real socket."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waitress import wasyncore
from werkzeug.test import Client

from hpsearch.settings import Settings
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
            server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))  # without connections its loop ends
            thread.join(30)
            server.task_dispatcher.shutdown()
            assert not thread.is_alive()
