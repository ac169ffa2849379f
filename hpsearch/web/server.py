"""The dashboard's server: optuna-dashboard at `/`, hpsearch's pages under `/hpsearch/`, the guard in front of both."""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.artifacts import FileSystemArtifactStore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from werkzeug.exceptions import ServiceUnavailable

from hpsearch.errors import StorageError, UsageError
from hpsearch.settings import Settings
from hpsearch.storage.open import connect, file_of
from hpsearch.storage.s3 import SCHEME, Bucket
from hpsearch.web.access import Access, Sessions
from hpsearch.web.app import make_app
from hpsearch.web.guard import Application, Environ, Guard, is_own
from hpsearch.web.mount import OptunaDashboard
from hpsearch.web.notes import Notes
from hpsearch.web.source import Source

THREADS = 8
MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 64 * 1024  # a form; with --allow-write, optuna-dashboard takes pictures too
MAX_UPLOAD_BYTES = 16 * 1024 * 1024
PATIENCE_SECONDS = 30  # how long a connection may be silent, or a request take to arrive
MAX_CONNECTIONS = 200
# Whose address a failed sign-in counts against, behind a proxy that speaks TLS: the one that it names last, its client.
BEHIND_PROXY = {"trusted_proxy": "*", "trusted_proxy_count": 1, "trusted_proxy_headers": {"x-forwarded-for"}}


class Both:
    """optuna-dashboard and hpsearch's own pages over one storage.

    A SQLite file can be moved away, and another one put in its place, while connections to it are open: then all is
    opened anew. While there is none, nothing is opened, which would make an empty one.
    """

    def __init__(self, settings: Settings, access: Access, sessions: Sessions) -> None:
        self._settings, self._access, self._sessions = settings, access, sessions
        self._file, self._lock = file_of(settings.storage_url), threading.Lock()
        self._open()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        try:
            with self._lock:
                if (now := _identity(self._file)) != self._known:
                    if now is not None:  # else it may come back
                        self.close()
                    self._open()
                chosen: Any = self._own if is_own(environ["PATH_INFO"]) else self._theirs
        except StorageError:
            chosen = ServiceUnavailable("The storage does not answer; try again soon.", retry_after=5)
        answer: Iterable[bytes] = chosen(environ, start_response)
        return answer

    def close(self) -> None:
        """Close the database's connections."""
        self._theirs.close()
        self._database.close()

    def _open(self) -> None:
        known = _identity(self._file)
        self._database = connect(self._settings.storage_url)
        source = Source(self._database, self._settings)
        self._own = make_app(source, self._access, self._sessions)
        store = _artifact_store(self._settings.pictures)  # makes a folder: not before the storage is there
        write = self._access.allow_write
        self._theirs = OptunaDashboard(self._settings.storage_url, store, Notes(source), allow_write=write)
        self._known = known


def _identity(file: Path | None) -> tuple[int, int] | None:
    """What tells a file from another one at its path, as long as somebody holds it open; None if there is none."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


@contextmanager
def application(settings: Settings, access: Access) -> Iterator[Application]:
    """Both applications behind the guard, as one for any WSGI server; at its end, their databases are closed."""
    sessions = Sessions(access.token)
    both = Both(settings, access, sessions)
    try:
        yield Guard(both, access, sessions)
    finally:
        both.close()


def _artifact_store(place: str) -> Any:
    """Where optuna-dashboard finds the files of trials."""
    if place.startswith(SCHEME):
        return Bucket(place)
    folder = Path(os.path.expanduser(place))
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        UsageError: the address is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except UnicodeError as error:
        raise UsageError(f"--host {host}: is no name of a machine; choose another one") from error
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; choose another one") from error


def make_server(application: Application, listener: socket.socket, access: Access) -> Any:
    """The waitress server; its `run()` answers until it is interrupted."""
    server = create_server(
        application,
        sockets=[listener],
        threads=THREADS,
        ident=None,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=MAX_UPLOAD_BYTES if access.allow_write else MAX_BODY_BYTES,
        channel_timeout=PATIENCE_SECONDS,
        cleanup_interval=PATIENCE_SECONDS // 3,
        connection_limit=MAX_CONNECTIONS,
        clear_untrusted_proxy_headers=True,
        **(BEHIND_PROXY if access.secure else {}),
    )
    server.channel_class = _Channel
    return server


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection on which a request that trickles in byte by byte counts as silence."""

    last_activity: float

    def handle_read(self) -> None:
        before, unfinished = self.last_activity, self.request is not None
        super().handle_read()
        if unfinished and self.request is not None:
            self.last_activity = before
