"""What grows with a study on PostgreSQL: bytes in the database, and what a look at it costs a worker and the server.

Run: python -m benchmarks.million     (in the repository's folder; a few minutes; --trials for other sizes)

The studies are those of benchmarks/storage.py: ten hyperparameters, three of them conditional, 100 epochs, and trials
that ended where ASHA would have ended them. The database is vacuumed before its size is taken.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import optuna
import psycopg
from sqlalchemy import func, select

from benchmarks.population import NAME, lenet, populated
from benchmarks.scale import commit, processor, tree_cpu_seconds
from hpsearch.search.asking import ask
from hpsearch.search.view import View
from hpsearch.storage import ledger, snapshot
from hpsearch.storage.open import Database, connect
from hpsearch.storage.studies import LoadedStudy, load_study, progress
from hpsearch.storage.tables import EPOCHS, INTERMEDIATE_VALUES, TRIALS
from tests.postgres import PostgresServer, running_server

SIZES, OPEN = (1_000, 10_000, 30_000), (160, 1_600, 16_000)  # ended trials; trials that run, 16 a worker
STUDY = ("training.epochs=100", "pruner.min_epochs=1", "sampler={name='tpe'}")
LOOKS, LANES, LEASE, LAST = 20, 16, 3600.0, 10**9


def sizes(url: str) -> None:
    """Bytes of every table with its indexes, by trial and by row."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        found = connection.execute(
            "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = 'public'::regnamespace ORDER BY 2 DESC"
        ).fetchall()
        whole = sum(int(size) for _, size in found)
        trials = connection.execute("SELECT count(*) FROM trials").fetchone() or (1,)
        values = connection.execute("SELECT count(*) FROM trial_intermediate_values").fetchone() or (1,)
    by_table = {str(name): int(size) for name, size in found}
    per_value = [by_table[table.name] / values[0] for table in (INTERMEDIATE_VALUES, EPOCHS)]
    rest = whole - by_table[INTERMEDIATE_VALUES.name] - by_table[EPOCHS.name]
    print(f"  {values[0]} reported values; {whole / 1e6:.1f} MB, {whole / trials[0]:.0f} bytes a trial")
    print(f"  each reported value {per_value[0]:.0f} bytes in Optuna's table and {per_value[1]:.0f} in hpsearch's")
    print(f"  everything else {rest / trials[0]:.0f} bytes a trial", flush=True)


def first_look(url: str, results: Any) -> None:
    """In a process of its own: seconds and MB of memory that the view of the study takes."""
    with connect(url) as database:
        study = load_study(database, NAME)
        gc.collect()
        before = resident()
        view = View(database, study, frozenset({1, 3, 9, 27, 81}))
        started = time.perf_counter()
        view.sync()
        took = time.perf_counter() - started
        gc.collect()
        grown = resident() - before
        lease = ledger.take(database, study.study_id, 2, "million", LEASE, study.plan).leases
        view.sync()
        started = time.perf_counter()
        ask(view, study.spec, lease[0], 0, None)
        first = time.perf_counter() - started
    results.put((took, grown, first))


def resident() -> float:
    """MB of memory that this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def looks(server: PostgresServer, url: str) -> None:
    """What each worker does again and again, by the number of trials that run at the same time."""
    with connect(url) as database:
        study = load_study(database, NAME)
        known = _count(database)
        for number in OPEN:
            take(database, study, number - (_count(database) - known))
            with database.engine.connect() as connection:
                connection.exec_driver_sql("ANALYZE trials")
            print(f"  {known} trials ended, {number} running: ", end="")
            for name, work in (("look", look), ("take 16", take), ("progress", progress)):
                seconds, cpu = costs(server, work, database, study)
                print(f"{name} {seconds * 1e3:.1f} ms (PostgreSQL's CPU {cpu * 1e3:.1f} ms); ", end="")
            print(flush=True)


def look(database: Database, study: LoadedStudy) -> None:
    """What a worker asks at a rung: the trials that have not ended."""
    with database.engine.connect() as connection:
        snapshot.open_trials(connection, study.study_id, LAST)


def take(database: Database, study: LoadedStudy, num: int = LANES) -> None:
    ledger.take(database, study.study_id, num, "million", LEASE, study.plan)


def costs(server: PostgresServer, work: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """The median time, and the server's mean CPU time."""
    before, times = tree_cpu_seconds(server.pid), []
    for _ in range(LOOKS):
        started = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - started)
    return statistics.median(times), (tree_cpu_seconds(server.pid) - before) / LOOKS


def _count(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(TRIALS)).one()


def main() -> None:
    parser = argparse.ArgumentParser(description="what grows with a study")
    parser.add_argument("--trials", nargs="+", type=int, default=SIZES, metavar="N")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, commit {commit()}")
    print(f"Python {platform.python_version()}, Optuna {optuna.__version__}, psycopg {psycopg.__version__}")
    context = multiprocessing.get_context("spawn")
    with running_server(fsync=True) as server:
        for number in arguments.trials:
            url = server.new_database()
            populated(url, lenet(*STUDY), number)[0].close()
            print(f"{number} trials")
            sizes(url)
            results = context.SimpleQueue()
            process = context.Process(target=first_look, args=(url, results))
            process.start()
            seconds, grown, first = results.get()
            process.join()
            print(f"  first look {seconds:.2f} s; the view {grown:.0f} MB, {grown * 1e6 / number:.0f} bytes a trial")
            print(f"  a suggestion by TPE alone {first * 1e3:.0f} ms", flush=True)
            looks(server, url)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
