"""A real PgBouncer in transaction mode for tests and benchmarks, before a server of tests/postgres.py.

It is Debian's package `pgbouncer`; tests/install.sh installs it. PgBouncer refuses to run as root as PostgreSQL does.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.postgres import PostgresServer, as_plain_user, die_with_parent, free_port

START_SECONDS = 20
MISSING = "no PgBouncer: run tests/install.sh as root, or apt-get install pgbouncer"


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    port: int
    pid: int


def binary() -> str | None:
    """Where PgBouncer is; None if it is not installed."""
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


@contextmanager
def pooled(server: PostgresServer, pool_size: int, max_clients: int = 100) -> Iterator[Pooler]:
    """A PgBouncer that has `pool_size` connections to each database; stopped at the end."""
    folder, port = Path(tempfile.mkdtemp(prefix="hpsearch-pgb-")), free_port()
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "pool_mode": "transaction",
        "default_pool_size": pool_size,
        "max_client_conn": max_clients,
        "auth_type": "trust",
        "auth_file": folder / "users",
        "query_wait_timeout": 60,  # seconds; a client that needs two connections at once would wait for ever
    }
    lines = [f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]"]
    lines += [f"{key} = {value}" for key, value in settings.items()]
    (folder / "users").write_text('"hpsearch" ""\n')
    (folder / "pgbouncer.ini").write_text("\n".join([*lines, ""]))
    command = [*as_plain_user(), *die_with_parent(), binary() or "pgbouncer", str(folder / "pgbouncer.ini")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(process, port, folder / "log")
        yield Pooler(port, process.pid)
    finally:
        process.kill()  # at once, with connections open; a shell may have had SIGQUIT ignored
        process.wait(timeout=START_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def through(url: str, port: int) -> str:
    """The URL of the same database by way of PgBouncer."""
    before, _, rest = url.partition("@127.0.0.1:")
    return f"{before}@127.0.0.1:{port}/{rest.partition('/')[2]}"


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="hpsearch", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"PgBouncer did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
