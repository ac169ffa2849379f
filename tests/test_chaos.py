"""Chaos: workers are killed, stopped and terminated at random, PostgreSQL is restarted; afterwards nothing shows."""

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select

from hpsearch.data.load import load
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import ledger, tables
from hpsearch.storage.open import FAULTS, Database, connect, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study, progress
from hpsearch.train.program import Program, place
from tests.postgres import PostgresServer, running_server
from tests.studies import quick

NUM_TRIALS, NUM_WORKERS = (200, 8) if os.environ.get("HPSEARCH_SOAK") else (40, 4)
EPOCHS = 20
LEASE_SECONDS = 2.0
LIMIT_SECONDS = 30 * NUM_TRIALS  # far more than it takes; a study that is stuck ends here

STUDY = quick(
    "chaos",
    NUM_TRIALS,
    EPOCHS,
    "hidden_width = { low = 8, high = 64 }",
    'optimizer = ["sgd", "adam"]',
    'scheduler = ["constant", "cosine"]',
)


def work(settings: Settings) -> None:
    """One worker, as `hpsearch worker` is, with its signals."""
    from hpsearch.worker import Limits, serve

    torch.set_num_threads(1)
    os.environ.pop("HPSEARCH_STORAGE", None)
    interruption = Interruption()
    try:
        with interruption.listening(), connect(settings.storage_url) as database:
            for _ in serve(database, "chaos", settings, interruption, Limits()):
                pass
    except (Interrupted, *FAULTS):
        os._exit(75)


class Crew:
    """So many worker processes, replaced when they are gone; some of them stopped for a while."""

    def __init__(self, settings: Settings, dice: random.Random) -> None:
        self._settings, self._dice = settings, dice
        # Forked from a process that has imported everything: a worker starts in milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["hpsearch.worker", "hpsearch.train.program", "hpsearch.data.digits"])
        self._workers: list[BaseProcess] = []
        self._wake_up: dict[int, float] = {}

    def fill(self) -> None:
        """Replace those that are gone, and wake those that have been stopped for long enough."""
        now = time.monotonic()
        for pid in [pid for pid, due in self._wake_up.items() if due < now]:
            del self._wake_up[pid]
            os.kill(pid, signal.SIGCONT)
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        while len(self._workers) < NUM_WORKERS:
            worker = self._context.Process(target=work, args=(self._settings,))
            worker.start()
            self._workers.append(worker)

    def strike(self) -> None:
        """Send one worker a signal."""
        worker = self._dice.choice(self._workers)
        if worker.pid is None or worker.pid in self._wake_up or not worker.is_alive():
            return
        number = self._dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        os.kill(worker.pid, number)
        if number == signal.SIGSTOP:
            self._wake_up[worker.pid] = time.monotonic() + LEASE_SECONDS * 1.5

    def dismiss(self) -> None:
        """Kill what is left."""
        for worker in self._workers:
            worker.kill()
            worker.join()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of its own, because it is restarted."""
    with running_server() as server:
        yield server


@pytest.mark.timeout(LIMIT_SECONDS)
def test_chaos_on_sqlite(tmp_path: Path) -> None:
    disturb(f"sqlite:///{tmp_path / 'study.db'}", tmp_path, restart=None)


@pytest.mark.timeout(LIMIT_SECONDS)
def test_chaos_with_eight_lanes_a_worker(tmp_path: Path, server: PostgresServer) -> None:
    disturb(server.new_database(), tmp_path, restart=lambda: restarted(server), lanes=8)


@pytest.mark.timeout(LIMIT_SECONDS)
def test_chaos_on_postgresql_that_is_restarted(tmp_path: Path, server: PostgresServer) -> None:
    disturb(server.new_database(), tmp_path, restart=lambda: restarted(server))


def restarted(server: PostgresServer) -> None:
    """Stop the server, and start it a second later."""
    server.stop()
    time.sleep(1.0)
    server.start()


def disturb(url: str, home: Path, restart: Callable[[], None] | None, lanes: int = 1) -> None:
    """Run the study among signals and restarts, then compare it with what undisturbed training gives."""
    settings = Settings(
        storage_url=url,
        home=home,
        data_dir=None,
        device="cpu",
        lease_seconds=LEASE_SECONDS,
        checkpoint_seconds=0.2,
        lanes=lanes,
    )
    with create(url) as database:
        create_study(database, parse(STUDY, "chaos.toml"), "chaos")
        study = load_study(database, "chaos")
        crew, dice = Crew(settings, random.Random(0)), random.Random(1)
        restarts = [0.3, 0.6] if restart else []  # when so much of all epochs is recorded; many trials end at once
        strikes = recorded = 0
        try:
            while progress(database, study).finished < NUM_TRIALS:
                crew.fill()
                time.sleep(dice.uniform(0.5, 1.5))
                before, recorded = recorded, num_epochs(database)
                if recorded != before:  # on a machine so slow that nothing moves, a strike a second would be for ever
                    crew.strike()
                    strikes += 1
                if restart and restarts and recorded > restarts[0] * NUM_TRIALS * EPOCHS:
                    restarts.pop(0)
                    restart()
                    database.close()
        finally:
            crew.dismiss()
        assert restarts == []
        assert strikes >= 5
        check(study.optuna_study.get_trials(), home)
        for trial in study.optuna_study.get_trials(deepcopy=False):
            assert [row["epoch"] for row in ledger.epochs(database, trial._trial_id)] == list(range(1, EPOCHS + 1))


def num_epochs(database: Database) -> int:
    """How many epochs are recorded."""
    with database.engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(tables.EPOCHS)).one()


def check(trials: list[FrozenTrial], home: Path) -> None:
    """Exactly the budget, no gap, no duplicate, and every value that of an undisturbed run of the same recipe."""
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({str(sorted(trial.params.items())) for trial in trials}) == NUM_TRIALS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: sums over another number of threads round differently
    data = place(load("digits", data_dir=None, cache_dir=home / "datasets", image_size=8), "cpu")
    for trial in trials:
        recipe = Recipe(**trial.user_attrs[RECIPE_KEY])
        program = Program(recipe, build_model(recipe, data.input_shape, data.num_classes), data)
        undisturbed = {epoch: program.run_epoch().validation_accuracy for epoch in range(1, EPOCHS + 1)}
        assert trial.intermediate_values == undisturbed, trial.number
        assert trial.value == undisturbed[EPOCHS]
        assert math.isfinite(trial.value)
    torch.set_num_threads(threads)
