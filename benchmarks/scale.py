"""How many workers one PostgreSQL carries: 1, 10, 100 and 1,000 simulated ones, each reporting 16 lanes once a second.

Run: python -m benchmarks.scale      (in the repository's folder; three minutes; nothing else should run meanwhile)

The workers take, record and end trials by hpsearch's own code; they train nothing, and neither suggest nor look at the
study (benchmarks/million.py measures that). PostgreSQL is started here, with fsync on; more than 150 workers reach it
through PgBouncer, unless --through says otherwise. Load, database and its clients share this machine's cores.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import optuna
import psycopg
import sqlalchemy

from benchmarks.population import lenet, populated
from benchmarks.simulated import Load, Seen, simulate
from tests.pgbouncer import MISSING, binary, pooled, through
from tests.postgres import PostgresServer, running_server

SIZES, SECONDS, LANES, EPOCHS, POOL = (1, 10, 100, 1_000), 25.0, 16, 10, 20
MOST_DIRECT = 150  # workers with a connection of their own to PostgreSQL
PROCESSES = 2  # that simulate workers
START_SECONDS = 120.0  # until the simulating processes are ready
LATE_SECONDS = 1.0  # after it was due: the worker has fallen behind by a report
Sample = list[tuple[bool, str]]  # for each connection whether it works, and what it waits for
MEASURING = "benchmarks.scale"  # the application's name of its own connections
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """The clocks at one moment: CPU seconds of PostgreSQL, of PgBouncer and of everything here; transactions."""

    at: float
    postgres: float
    pooler: float
    everything: float
    transactions: int

    def since(self, earlier: "Reading") -> "Reading":
        """What passed between two moments, a second."""
        took = self.at - earlier.at
        return Reading(
            took,
            (self.postgres - earlier.postgres) / took,
            (self.pooler - earlier.pooler) / took,
            (self.everything - earlier.everything) / took,
            round((self.transactions - earlier.transactions) / took),
        )


@dataclass(frozen=True)
class Row:
    """The measurement of one size; latencies in seconds, loads in cores."""

    workers: int
    via: str
    reports_per_second: float
    rates: Reading
    median: float
    p99: float
    late: float  # share of the reports
    change: float  # the median time of a change to new trials: take, draw up and record
    active: float  # connections of PostgreSQL that work, on average
    connections: int  # at the most
    generator: float  # cores of the simulated workers
    faults: int
    waits: str  # what the connections that work wait for, the most frequent first

    @property
    def others(self) -> float:
        """Cores that programs used which do not belong to the measurement."""
        return max(0.0, self.rates.everything - self.rates.postgres - self.rates.pooler - self.generator)


def measure(server: PostgresServer, workers: int, seconds: float, *, direct: bool, lanes: int = LANES) -> Row:
    """So many workers on a new, empty study."""
    url = server.new_database()
    spec = lenet("training.epochs=10", "pruner={name='none'}", "sampler={name='random'}")
    database, _ = populated(url, spec, 0)
    database.close()
    with ExitStack() as stack:
        pooler = None if direct else stack.enter_context(pooled(server, POOL, workers + 100))
        reached = url if pooler is None else through(url, pooler.port)
        processes = min(PROCESSES, workers)
        context = multiprocessing.get_context("spawn")
        ready, results = context.Barrier(processes + 1), context.SimpleQueue()
        ramp = max(2.0, workers / 50)
        shares = [workers // processes + (i < workers % processes) for i in range(processes)]
        loads = [Load(reached, share, lanes, EPOCHS, ramp, seconds) for share in shares]
        children = [context.Process(target=simulate, args=(load, ready, results)) for load in loads]
        for child in children:
            child.start()
        ready.wait(START_SECONDS)
        time.sleep(ramp)
        pids = (server.pid, None if pooler is None else pooler.pid)
        with activity(url) as sampled:
            before = reading(url, *pids)
            time.sleep(seconds)
            rates = reading(url, *pids).since(before)
        seen: list[Seen] = [results.get() for _ in children]
        for child in children:
            child.join()
    return summary(workers, f"PgBouncer, {POOL}" if pooler else "direct", rates, seen, sampled, seconds)


def summary(workers: int, via: str, rates: Reading, seen: list[Seen], sampled: list[Sample], seconds: float) -> Row:
    latencies = sorted(latency for one in seen for latency in one.reports) or [float("nan")]
    changes = [change for one in seen for change in one.changes] or [float("nan")]
    waits = [wait for sample in sampled for active, wait in sample if active]
    return Row(
        workers=workers,
        via=via,
        reports_per_second=len(latencies) / seconds,
        rates=rates,
        median=statistics.median(latencies),
        p99=latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        late=sum(latency > LATE_SECONDS for latency in latencies) / len(latencies),
        change=statistics.median(changes),
        active=len(waits) / max(1, len(sampled)),
        connections=max(map(len, sampled), default=0),
        generator=sum(one.cpu_seconds for one in seen) / seconds,
        faults=sum(one.faults for one in seen),
        waits=", ".join(f"{wait} {num / len(waits):.0%}" for wait, num in Counter(waits).most_common(3)),
    )


@contextmanager
def activity(url: str) -> Iterator[list[Sample]]:
    """Connections of the database that work, and all of them, every half second; whoever looks is not counted."""
    sampled: list[Sample] = []
    done = threading.Event()
    statement = (
        "SELECT state = 'active', coalesce(wait_event_type || ' ' || wait_event, 'none') FROM pg_stat_activity "
        f"WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> '{MEASURING}'"
    )

    def look() -> None:
        with measuring(url) as connection:
            while not done.wait(0.5):
                sampled.append([(bool(active), str(wait)) for active, wait in connection.execute(statement)])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sampled
    finally:
        done.set()
        thread.join()


def measuring(url: str) -> "psycopg.Connection[tuple[Any, ...]]":
    """A connection that the measurement does not count."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True, application_name=MEASURING)


def reading(url: str, postgres: int, pooler: int | None) -> Reading:
    with measuring(url) as connection:
        counted = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        transactions = connection.execute(counted).fetchone() or (0,)
    everything = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    busy = sum(everything) - everything[3] - everything[4]  # without idle and waiting for disks
    cpu = 0.0 if pooler is None else cpu_seconds(pooler)
    return Reading(time.monotonic(), tree_cpu_seconds(postgres), cpu, busy / TICK, int(transactions[0]))


def cpu_seconds(pid: int, *, reaped: bool = False) -> float:
    """CPU time of a process, with that of children that have ended if `reaped`; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if reaped else 13])) / TICK


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, past and present."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid, reaped=True) + sum(cpu_seconds(int(child)) for child in children)


COLUMNS = (
    "workers  via             reports/s  transactions/s  median ms   p99 ms    late  change ms  "
    "PostgreSQL cores  active  connections  PgBouncer  generator  others  faults  working connections wait for"
)


def line(row: Row) -> str:
    return (
        f"{row.workers:7d}  {row.via:14s}{row.reports_per_second:11.1f}{row.rates.transactions:16d}"
        f"{row.median * 1e3:11.1f}{row.p99 * 1e3:9.1f}{row.late:8.1%}{row.change * 1e3:11.1f}"
        f"{row.rates.postgres:18.2f}{row.active:8.1f}{row.connections:13d}{row.rates.pooler:11.2f}"
        f"{row.generator:11.2f}{row.others:8.2f}{row.faults:8d}  {row.waits}"
    )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="how many workers one PostgreSQL carries")
    parser.add_argument("--workers", nargs="+", type=int, default=SIZES, metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured for each number of workers")
    parser.add_argument("--lanes", type=int, default=LANES, help="of each worker")
    parser.add_argument("--through", choices=["auto", "direct", "pgbouncer"], default="auto")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, commit {commit()}")
    versions = f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}, psycopg {psycopg.__version__}"
    connections = max(MOST_DIRECT, *arguments.workers) + 20
    with running_server(fsync=True, max_connections=connections) as server:
        with psycopg.connect(server.url("postgres").replace("+psycopg", "")) as connection:
            number = connection.info.parameter_status("server_version")
        print(f"{versions}, PostgreSQL {number}, max_connections {connections}")
        print(f"{arguments.lanes} lanes, one report a second, trials of {EPOCHS} epochs, {arguments.seconds:g} s each")
        print(COLUMNS, flush=True)
        for workers in arguments.workers:
            direct = arguments.through == "direct" or (arguments.through == "auto" and workers <= MOST_DIRECT)
            if not direct and binary() is None:
                raise SystemExit(MISSING)
            print(line(measure(server, workers, arguments.seconds, direct=direct, lanes=arguments.lanes)), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
