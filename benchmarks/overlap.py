"""The share of a worker's time in which training waits for PostgreSQL, with all that can be done meanwhile, or without.

Run: python -m benchmarks.overlap      (in the repository's folder; four minutes; nothing else should run meanwhile)

The worker is hpsearch's own (`hpsearch/training.py`) with 64 lanes, but that an epoch sleeps for as long as a GPU would
compute. PostgreSQL is started here, with fsync on, and reached through a relay that delays what is said. Two studies:
`none` trains long trials to their ends, so that nothing depends on an epoch; `asha` decides at rungs, which both sides
wait for, and replaces trials at almost every epoch.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.engine import make_url

from benchmarks.population import quality
from hpsearch.interrupt import Interruption
from hpsearch.patience import Patience
from hpsearch.recipe import Recipe
from hpsearch.reporting import Batch
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage.open import connect, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.train.lanes import Result
from hpsearch.train.plan import LaneCount, Stream
from hpsearch.train.program import EpochResult, State
from hpsearch.training import Training
from hpsearch.worker import _prepare
from tests.postgres import free_port, running_server

ROUND_TRIPS_MS, LANES, EPOCH_SECONDS, EPOCHS = (0.0, 5.0, 20.0), 64, 0.3, 40
STUDY = """
name = "overlap"
[model]
name = "2lp"
[data]
name = "digits"
image_size = 8
[training]
epochs = {epochs}
hidden_width = 8
[space]
learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
weight_decay = {{ low = 1e-6, high = 1e-2, log = true }}
[sampler]
name = "random"
[pruner]
name = "{pruner}"
[budget]
trials = 100000
"""


class Sleeping:
    """In place of `Lanes`: one group of trials, whose epochs take as long as they are told to, and no arithmetic."""

    def __init__(self, epoch_seconds: float) -> None:
        self._seconds, self._epochs = epoch_seconds, dict[int, int]()

    @property
    def keys(self) -> Iterator[int]:
        """Of the trials."""
        return iter(list(self._epochs))

    def keep_epoch(self) -> None:
        """There is nothing to keep."""

    def train_epoch(self) -> dict[int, Result]:
        """Sleep."""
        time.sleep(self._seconds)
        self._epochs = {key: epoch + 1 for key, epoch in self._epochs.items()}
        return {key: self._result(key, epoch) for key, epoch in self._epochs.items()}

    def _result(self, key: int, epoch: int) -> EpochResult:
        value = quality(key, epoch)
        return EpochResult(epoch, 1.0 - value, value, 1.0 - value, value, 0.1, 1.0, 1_000.0, diverged=False)

    def complaints(self) -> list[str]:
        """There are none."""
        return []

    def groups(self) -> Iterator["Sleeping"]:
        """This one, if it has trials."""
        return iter([self] if self._epochs else [])

    def add(self, key: int, _recipe: Recipe, _model: Any, _state: State | None = None) -> None:
        """A trial that begins."""
        self._epochs[key] = 0

    def drop(self, key: int) -> None:
        """A trial that has ended."""
        self._epochs.pop(key, None)

    def state(self, _key: int) -> None:
        """There is nothing to keep."""
        return

    def positions(self) -> dict[Stream, int]:
        """There are no images."""
        return {}


class Waiting(Training):
    """The other side: every epoch is recorded, and every lane filled again, before the next one trains."""

    def _decided(self, batch: Batch) -> set[int]:
        super()._decided(batch)
        return set(batch.results)

    def _num_ending(self) -> int:
        return 0  # no stock


@dataclass(frozen=True)
class Share:
    """What one worker did: the share of its time in which training waited, and how much it trained."""

    waited: float
    trials: int
    rounds: int


def measure(url: str, pruner: str, side: type[Training], num_epochs: int, epoch_seconds: float, lanes: int) -> Share:
    """A worker on a new study, from its first round on."""
    spec: StudySpec = parse(
        STUDY.format(pruner=pruner, epochs=num_epochs + 2 if pruner == "none" else 20), "overlap.toml"
    )
    with tempfile.TemporaryDirectory() as home, connect(url) as database:
        name = f"{pruner}-{side.__name__}-{time.monotonic_ns()}"
        create_study(database, spec, name)
        settings = Settings(url, Path(home), None, device="cpu", lanes=lanes)
        interruption = Interruption()
        bench = _prepare(database, load_study(database, name), settings, torch.device("cpu"), interruption)
        session, sleeping = bench.session, Sleeping(epoch_seconds)
        count = LaneCount(lanes, on_gpu=False)
        patience = Patience(database, settings, interruption, session.waiting)
        training = side(bench, sleeping, count, patience)  # type: ignore[arg-type]
        list(training.fill())
        began, waited = time.monotonic(), session._waited
        for _ in range(num_epochs):
            list(training.round())
            list(training.fill())
        share = (session._waited - waited) / (time.monotonic() - began)
        list(training.give_back("the measurement is over"))
        training.close()
        return Share(share, len(load_study(database, name).optuna_study.get_trials(deepcopy=False)), num_epochs)


@contextmanager
def delayed(url: str, round_trip: float) -> Iterator[str]:
    """The URL of a way to the same database on which an answer takes so many seconds longer."""
    if round_trip == 0.0:
        yield url
        return
    there, port = make_url(url), free_port()
    words = [str(port), str(there.host), str(there.port), str(round_trip / 2)]
    relay = subprocess.Popen([sys.executable, "-m", "tests.relay", *words])
    time.sleep(2.0)
    try:
        yield there.set(port=port).render_as_string(hide_password=False)
    finally:
        relay.kill()
        relay.wait()


COLUMNS = "study  round trip ms  waits without  waits with  ratio  trials without  trials with"


def compare(url: str, pruner: str, round_trip: float, num_epochs: int, epoch_seconds: float, lanes: int) -> str:
    """Both sides, one after the other; a line of the table."""
    with delayed(url, round_trip) as way:
        without, with_overlap = (
            measure(way, pruner, side, num_epochs, epoch_seconds, lanes) for side in (Waiting, Training)
        )
    ratio = without.waited / max(with_overlap.waited, 1e-9)
    return (
        f"{pruner:5s}{round_trip * 1e3:15.0f}{without.waited:15.2%}{with_overlap.waited:12.2%}{ratio:7.1f}"
        f"{without.trials:16d}{with_overlap.trials:13d}"
    )


def main() -> None:
    """Measure every delay with both studies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="rounds of each measurement")
    parser.add_argument("--round-trips", type=float, nargs="+", default=list(ROUND_TRIPS_MS), metavar="MS")
    parser.add_argument("--epoch-seconds", type=float, default=EPOCH_SECONDS)
    given = parser.parse_args()
    print(COLUMNS)
    with running_server(fsync=True) as server:
        url = server.new_database()
        create(url).close()
        for pruner in ("none", "asha"):
            for milliseconds in given.round_trips:
                print(compare(url, pruner, milliseconds / 1e3, given.epochs, given.epoch_seconds, LANES), flush=True)


if __name__ == "__main__":
    main()
