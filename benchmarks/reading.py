"""Reading a large study: Optuna's storage and hpsearch's, and commands upon either.

Run: python -m benchmarks.reading     (in the repository's folder; some minutes; --trials and --epochs for other sizes)

Every trial has been trained to its end, which no pruner would do: the most that there is to read. Each reading and
each command is a process of its own; memory is the most that it had.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import optuna
import sqlalchemy

from benchmarks.population import NAME
from benchmarks.scale import commit, processor
from tests.postgres import running_server

MAKE = """
import sys
from benchmarks.population import lenet, populated
populated(sys.argv[1], lenet(*sys.argv[3:]), int(sys.argv[2]))[0].close()
"""
OPTUNA = "import hpsearch.storage.open as o, optuna; o.BulkStorage = optuna.storages.RDBStorage"
SIDES = {"Optuna's": OPTUNA, "hpsearch's": ""}
READ = f"""
import sys
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study
with connect(sys.argv[1]) as database:
    print(len(load_study(database, "{NAME}").optuna_study.get_trials(deepcopy=False)), "trials")
"""
COMMAND = "import sys; from hpsearch.cli.main import main; main(sys.argv[2:] + ['--storage', sys.argv[1]])"


def measured(program: str, *arguments: str) -> tuple[float, float]:
    """Seconds and the most MB of a process that runs this program.

    This process stays small: the memory of a parent counts as the most that its child had.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def compared(what: str, program: str, *arguments: str) -> None:
    """One row: both sides, and their ratio."""
    (seconds, memory), (ours, our_memory) = (measured(f"{side}\n{program}", *arguments) for side in SIDES.values())
    print(
        f"| {what} | {seconds:.1f} s, {memory:,.0f} MB | {ours:.1f} s, {our_memory:,.0f} MB "
        f"| {seconds / ours:.1f}, {memory / our_memory:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="reading a large study")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, commit {commit()}")
    print(f"Python {platform.python_version()}, Optuna {optuna.__version__}, SQLAlchemy {sqlalchemy.__version__}")
    print(f"{arguments.trials} trials of {arguments.epochs} epochs")
    print(
        f"| | {' | '.join(f'{side} reading' for side in SIDES)} | times as fast, as small |\n| --- | --- | --- | --- |"
    )
    spec = (f"training.epochs={arguments.epochs}", "pruner={name='none'}", "sampler={name='tpe'}")
    with tempfile.TemporaryDirectory() as folder, running_server(fsync=True) as server:
        lite = f"sqlite:///{folder}/many.db"
        for kind, url in (("SQLite", lite), ("PostgreSQL", server.new_database())):
            measured(MAKE, url, str(arguments.trials), *spec)
            compared(f"all trials, {kind}", READ, url)
        for command in (("best", NAME), ("trials", NAME), ("report", NAME, "-o", str(Path(folder) / "report.html"))):
            compared(f"`hpsearch {command[0]}`, SQLite", COMMAND, lite, *command)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
