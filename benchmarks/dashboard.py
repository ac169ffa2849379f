"""The dashboard at 100, 1,000 and 10,000 trials of 50 values each, and what eight browsers cost the workers.

Run: python -m benchmarks.dashboard                 answers, bytes and memory for each number of trials
     python -m benchmarks.dashboard --workers       images per second of a worker with and without eight browsers
"""

import argparse
import gzip
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the code beside this file, not an installed one

from benchmarks.filling import made_up
from hpsearch.storage.open import create
from hpsearch.storage.tables import WORKERS

EPOCHS = 50
LOOKS = 3  # after the first
PAGES = {
    "Studies": "/hpsearch/",
    "Study": "/hpsearch/study/1",
    "Study, live": "/hpsearch/study/1?live=1",
    "Trials": "/hpsearch/study/1/trials?sort=value",
    "Trial": "/hpsearch/study/1/trial/7",
    "Trial, live": "/hpsearch/study/1/trial/7?live=1",
    "Compare, live": "/hpsearch/compare?study=1&t=1,2,3,4&live=1",
    "Best": "/hpsearch/study/1/best",
    "Workers": "/hpsearch/workers",
    "optuna-dashboard, study": "/api/studies/1",
}


@contextmanager
def dashboard(url: str) -> Iterator[tuple[str, int]]:
    """A dashboard over that storage: its address and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hpsearch", "dashboard", "--port", str(port), "--storage", url]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=place) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.send_signal(signal.SIGINT)


def ask(address: str) -> tuple[float, bytes]:
    """Seconds of one answer, and its body as it came."""
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=300) as answer:
        body = answer.read()
    return time.perf_counter() - began, body


def period(body: bytes) -> float:
    """For how many seconds a live answer is given again; those of other pages never are."""
    return float(json.loads(gzip.decompress(body))["period_seconds"]) if body.startswith(b"\x1f\x8b") else 0.2


def sizes(folder: Path, counts: list[int]) -> None:
    """A table for each number of trials."""
    for count in counts:
        url = f"sqlite:///{folder}/{count}.db"
        with create(url) as database:
            filled = made_up(database, "made-up", count, EPOCHS, prune=False)
            filled.fill(count, leave_running=4)
            filled.beat()
        with dashboard(url) as (address, process):
            print(f"\n{count} trials of {EPOCHS} values; server at start: {megabytes(process)} MB")
            print("| page | first, s | then, s (median; worst) | kB sent |\n| --- | --- | --- | --- |")
            for name, path in PAGES.items():
                first, body = ask(address + path)
                spent = []
                for _ in range(LOOKS):
                    time.sleep(period(body))  # so that nobody gets the last answer again
                    seconds, body = ask(address + path)
                    spent.append(seconds)
                then = f"{statistics.median(spent):.3f}; {max(spent):.3f}"
                print(f"| {name} | {first:.3f} | {then} | {len(body) / 1000:,.0f} |", flush=True)
            print(f"server at the end: {megabytes(process)} MB")


def megabytes(process: int) -> str:
    """The resident memory of a process (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return f"{pages * os.sysconf('SC_PAGESIZE') / 1e6:,.0f}"


def core_seconds(process: int) -> float:
    """The time that a process has spent on cores (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers(folder: Path, seconds: float, rounds: int) -> None:
    """Two workers, by turns without and with eight browsers that look at their study.

    Images per second vary with the machine's other guests by more than the browsers cost, so that the cores' time that
    the workers get is measured too.
    """
    home = {"HPSEARCH_HOME": str(folder), "HPSEARCH_STORAGE": f"sqlite:///{folder}/w.db", "OMP_NUM_THREADS": "1"}
    place = {**os.environ, **home, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = [sys.executable, "-m", "hpsearch"]
    study = ["create-study", "quickstart", "--set", "training.epochs=100000", "--set", "pruner.min_epochs=99999"]
    subprocess.run([*run, *study], env=place, check=True, stdout=subprocess.DEVNULL)
    processes = [
        subprocess.Popen([*run, "worker", "quickstart"], env=place, stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    try:
        with dashboard(home["HPSEARCH_STORAGE"]) as (address, process):
            time.sleep(15)
            for index in range(2 * rounds):
                looked_at = index % 4 in (1, 2)  # neither is always the later one
                spent, trained = core_seconds(process), sum(core_seconds(one.pid) for one in processes)
                rate = images_per_second(home["HPSEARCH_STORAGE"], address, looked_at, seconds)
                share = (core_seconds(process) - spent) / seconds
                cores = (sum(core_seconds(one.pid) for one in processes) - trained) / seconds
                found[looked_at].append((rate, cores))
                kind = "eight browsers" if looked_at else "nobody"
                print(f"{kind}: {rate:,.0f} images/s on {cores:.3f} cores, server {share:.1%} of a core", flush=True)
    finally:
        for one in processes:
            one.send_signal(signal.SIGTERM)
        for one in processes:
            one.wait(60)
    for column, unit in enumerate(("images/s", "cores")):
        alone, looked = ([row[column] for row in found[key]] for key in (False, True))
        change = [b / a - 1 for a, b in zip(alone, looked, strict=True)]
        error = statistics.stdev(change) / math.sqrt(len(change))
        print(f"{unit}: with eight browsers {statistics.mean(change):+.2%} (standard error {error:.2%})")


def images_per_second(url: str, address: str, looked_at: bool, seconds: float) -> float:
    """What the workers train in that time, all together; with or without eight browsers that poll."""
    ended = threading.Event()
    threads = [threading.Thread(target=browse, args=(address, ended)) for _ in range(8 if looked_at else 0)]
    for thread in threads:
        thread.start()
    images, began = trained(url), time.monotonic()
    time.sleep(seconds)
    rate = (trained(url) - images) / (time.monotonic() - began)
    ended.set()
    for thread in threads:
        thread.join()
    return rate


def trained(url: str) -> float:
    """Images that were trained so far: epochs times the images of one."""
    from sqlalchemy import func, select

    from hpsearch.storage.open import connect
    from hpsearch.storage.tables import LEASES

    with connect(url) as database, database.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(WORKERS)) == 2
        epochs = connection.scalar(select(func.sum(LEASES.c.epoch))) or 0
    return float(epochs) * IMAGES


IMAGES = 1617  # of an epoch of the digits' training part


def browse(address: str, ended: threading.Event) -> None:
    """What the script of an open page does: ask again after the period that the last answer gave."""
    tag = ""
    while not ended.is_set():
        request = urllib.request.Request(f"{address}/hpsearch/study/1?live=1", headers={"If-None-Match": tag})
        pause = 2.0
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                tag = answer.headers["ETag"]
                pause = period(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 304:
                raise
        ended.wait(pause)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.workers:
            workers(Path(folder), arguments.seconds, arguments.rounds)
        else:
            sizes(Path(folder), arguments.trials)


if __name__ == "__main__":
    main()
