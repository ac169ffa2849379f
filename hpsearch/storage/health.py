"""How a database is, measured: for `hpsearch doctor`. Nothing here says what is good; nothing stays changed."""

import os
import secrets
import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, delete, insert, text

from hpsearch.storage.leases import now
from hpsearch.storage.tables import WORKERS

ROUND_TRIPS = 7  # measured; the median counts
# Measured with a worker on PostgreSQL (tests/test_doctor.py): one, and at its start another that is just being closed.
CONNECTIONS_PER_WORKER = 2


@dataclass(frozen=True)
class Slots:
    """PostgreSQL's connections: `free` for this user now, of `limit`; `owner` says whose limit that is."""

    free: int
    limit: int
    owner: str


def round_trip_seconds(engine: Engine) -> float:
    """How long a small transaction takes that writes a row, or that reads if there are no tables yet.

    The row is that of a worker, and is removed again. Raises what the database raises.
    """
    if not sqlalchemy.inspect(engine).has_table(WORKERS.name):
        return statistics.median(_timed(engine, text("SELECT 1")) for _ in range(ROUND_TRIPS))
    owner = f"doctor:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    with engine.connect() as connection:
        at = now(connection)
    row = {"owner": owner, "host": socket.gethostname(), "process": os.getpid(), "device": "", "state": "doctor"}
    row |= {"images_per_second": 0.0, "storage_share": 0.0, "started": at, "seen": at}
    taken = []
    for _ in range(ROUND_TRIPS):
        try:
            taken.append(_timed(engine, insert(WORKERS).values(row)))
        finally:
            taken.append(_timed(engine, delete(WORKERS).where(WORKERS.c.owner == owner)))
    return statistics.median(taken)


def clock_offset_seconds(connection: Connection) -> float:
    """How much the database's clock is ahead of this machine's; exact to half a round trip."""
    now(connection)  # the first statement of a connection takes longer
    before = time.time()
    theirs = now(connection)
    return theirs - (before + time.time()) / 2


def version(connection: Connection) -> tuple[str, tuple[int, ...]]:
    """Name and version of the database."""
    known = connection.dialect.server_version_info or ()
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[connection.dialect.name]
    return name, tuple(part for part in known if isinstance(part, int))


def refuses_writing(connection: Connection) -> str:
    """Why PostgreSQL would refuse to write, as the end of a sentence; empty if it would not."""
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        return "is a standby, which can only be read: name the primary server"
    if connection.scalar(text("SELECT current_setting('default_transaction_read_only')")) == "on":
        return "has default_transaction_read_only on: switch that off for this user or database"
    return ""


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands before PostgreSQL: what serves is not the process that the connection was told of."""
    driver: Any = connection.connection.driver_connection
    return bool(connection.scalar(text("SELECT pg_backend_pid()")) != driver.info.backend_pid)


def slots(connection: Connection) -> Slots:
    """The tightest of the limits of PostgreSQL's server, of this database and of this user."""
    # Whoever may not see what others do sees no type either, but for every client its database.
    clients = "datid IS NOT NULL AND (backend_type IS NULL OR backend_type = 'client backend')"
    connected = f"SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {clients}"  # noqa: S608
    used = int(connection.scalar(text(connected)) or 0)
    reserved = [
        int(connection.scalar(text("SELECT current_setting(:name, true)"), {"name": name}) or 0)
        for name in ("superuser_reserved_connections", "reserved_connections")
    ]
    most = int(connection.scalar(text("SELECT current_setting('max_connections')")) or 0) - sum(reserved)
    limits = [Slots(most - used, most, "the server")]
    for owner, limit, of in (
        (
            "database",
            "datconnlimit FROM pg_database WHERE datname = current_database()",
            "datname = current_database()",
        ),
        ("user", "rolconnlimit FROM pg_roles WHERE rolname = current_user", "usename = current_user"),
    ):
        allowed = connection.scalar(text(f"SELECT {limit}"))
        if allowed is not None and allowed >= 0:  # -1: no limit
            mine = int(connection.scalar(text(f"{connected} AND {of}")) or 0)
            limits.append(Slots(allowed - mine, allowed, f"this {owner}"))
    return min(limits, key=lambda slots: slots.free)


def _timed(engine: Engine, statement: sqlalchemy.Executable) -> float:
    started = time.perf_counter()
    with engine.begin() as connection:
        connection.execute(statement)
    return time.perf_counter() - started
