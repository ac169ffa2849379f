"""Epochs that are recorded while the next one trains: nothing is lost, and nothing comes twice, however it ends."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from hpsearch.errors import StorageAway
from hpsearch.events import EpochDone, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import ledger
from hpsearch.storage.ledger import Report
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.train.program import Program
from hpsearch.train.side_by_side import SideBySide
from hpsearch.worker import run
from tests.studies import TINY
from tests.working import work

EPOCHS = 5
HANGS_SECONDS = 30.0  # then a thread waits for the other in vain

Written = Callable[[Sequence[Report]], None]


def quiet(trials: int = 1, pruner: str = "none") -> StudySpec:
    """A study of which nothing depends on an epoch but the last one, unless a pruner is named."""
    text = TINY.replace("epochs = 3", f"epochs = {EPOCHS}").replace("trials = 6", f"trials = {trials}")
    return parse(text.replace('"asha"', f'"{pruner}"'), "tiny.toml")


class Watch:
    """What a worker does with its epochs: which have begun to train, and which are written by which thread.

    `before` and `after` are called in the thread that writes an epoch, around the writing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Written = lambda _reports: None
        self.after: Written = lambda _reports: None
        self.begun: list[int] = []
        self.written: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.training = threading.Event()  # set when an epoch begins
        self._begin, self._report = Program.begin_epoch, ledger.report
        monkeypatch.setattr(Program, "begin_epoch", lambda program: self.begin(program))  # noqa: PLW0108 -- tests replace it
        monkeypatch.setattr("hpsearch.storage.ledger.report", self.report)

    def begin(self, program: Program) -> None:
        """An epoch begins."""
        self.begun.append(program.epoch + 1)
        self.training.set()
        self._begin(program)

    def report(self, database: Database, reports: Sequence[Report], lease_seconds: float) -> set[int]:
        """In place of the ledger's."""
        self.threads.add(threading.current_thread())
        self.before(reports)
        kept = self._report(database, reports, lease_seconds)
        self.written += [one.epoch for one in reports]
        self.after(reports)
        return kept

    def wait_for_epoch(self, epoch: int) -> None:
        """Until that epoch trains."""
        while epoch not in self.begun:
            self.training.clear()
            if epoch not in self.begun:
                assert self.training.wait(HANGS_SECONDS), f"epoch {epoch} does not begin before this is answered"


@pytest.fixture
def undisturbed(settings: Settings) -> dict[int, float]:
    """The curve of the trial when nothing happens to it."""
    with create(f"sqlite:///{settings.home / 'undisturbed.db'}") as database:
        work(database, quiet(), replace(settings, home=settings.home / "undisturbed"))
        return curve(database)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, undisturbed: dict[int, float]) -> Iterator[Watch]:
    """A look over a worker's shoulder; at the end none of its threads is left."""
    assert len(undisturbed) == EPOCHS  # trained before anybody looks
    watch = Watch(monkeypatch)
    yield watch
    assert not [thread for thread in watch.threads if thread.is_alive() and thread is not threading.main_thread()]


def curve(database: Database) -> dict[int, float]:
    """Recorded values of the first trial, by Optuna and by hpsearch alike."""
    trial = load_study(database, "tiny").optuna_study.trials[0]
    rows = ledger.epochs(database, trial._trial_id)
    assert {row["epoch"]: row["validation_accuracy"] for row in rows} == trial.intermediate_values
    return dict(trial.intermediate_values)


def away(_reports: Sequence[Report]) -> None:
    """The database does not answer."""
    raise OperationalError("INSERT", {}, Exception("connection refused"))


def expire(database: Database, *, stolen: bool = False) -> None:
    """Let all leases run out; `stolen`: somebody else has them."""
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0, token=LEASES.c.token + (1 if stolen else 0)))


def test_an_epoch_trains_while_the_one_before_is_written(database: Database, settings: Settings, watch: Watch) -> None:
    watch.before = lambda reports: watch.wait_for_epoch(min(reports[0].epoch + 1, EPOCHS))
    events = work(database, quiet(), settings)
    assert watch.written == list(range(1, EPOCHS + 1))
    told = [event.epoch for event in events if isinstance(event, EpochDone)]
    assert told == watch.written
    assert isinstance(events[-1], TrialEnded)
    assert events[-1].state == "COMPLETE"
    assert len(curve(database)) == EPOCHS


@pytest.mark.parametrize(("pruner", "awaited"), [("median", {1, 2, 3, 4, 5}), ("asha", {1, 5}), ("none", {5})])
def test_what_an_epoch_decides_is_waited_for(
    sqlite: Database, settings: Settings, watch: Watch, pruner: str, awaited: set[int]
) -> None:
    def nothing_trains(reports: Sequence[Report]) -> None:
        if (epoch := reports[0].epoch) in awaited:
            assert max(watch.begun) == epoch
            threading.Event().wait(0.05)
            assert max(watch.begun) == epoch
        else:
            watch.wait_for_epoch(epoch + 1)

    watch.before = nothing_trains
    work(sqlite, quiet(pruner=pruner), settings)
    assert watch.written == list(range(1, EPOCHS + 1))


def test_a_checkpoint_is_of_an_epoch_that_is_recorded(sqlite: Database, settings: Settings, watch: Watch) -> None:
    def nothing_trains(reports: Sequence[Report]) -> None:
        assert max(watch.begun) == reports[0].epoch

    watch.before = nothing_trains
    work(sqlite, quiet(), replace(settings, checkpoint_seconds=0.0))


@pytest.mark.parametrize("during", ["training", "bookkeeping"])
def test_a_signal_while_an_epoch_is_written(
    database: Database,
    settings: Settings,
    watch: Watch,
    undisturbed: dict[int, float],
    monkeypatch: pytest.MonkeyPatch,
    during: str,
) -> None:
    interruption, stopped = Interruption(), threading.Event()
    begin, keep = watch.begin, SideBySide.keep_epoch

    def ask() -> None:
        interruption.requested = True
        stopped.set()

    def training(program: Program) -> None:
        begin(program)
        if program.epoch == 2 and during == "training":
            ask()

    def bookkeeping(group: SideBySide) -> None:
        keep(group)
        if max(watch.begun) == 3 and during == "bookkeeping":
            ask()

    monkeypatch.setattr(watch, "begin", training)
    monkeypatch.setattr(SideBySide, "keep_epoch", bookkeeping)
    watch.before = lambda reports: stopped.wait(HANGS_SECONDS) if reports[0].epoch == 2 else None  # type: ignore[assignment,return-value]
    create_study(database, quiet(), "tiny")
    events = list(run(database, "tiny", settings, interruption))
    last = 2 if during == "training" else 3
    assert (events[-1].state, events[-1].epoch) == ("WAITING", last)  # type: ignore[union-attr]
    assert list(curve(database)) == list(range(1, last + 1))
    monkeypatch.setattr(watch, "begin", begin)
    watch.before = lambda _reports: None
    events = work(database, quiet(), settings)
    assert TrialResumed(0, last, EPOCHS) in events
    assert curve(database) == undisturbed


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_reader_who_goes_away_loses_no_epoch_that_is_trained(
    sqlite: Database, settings: Settings, watch: Watch, undisturbed: dict[int, float], epoch: int
) -> None:
    create_study(sqlite, quiet(), "tiny")
    events = run(sqlite, "tiny", settings, Interruption())
    while not (isinstance(event := next(events), EpochDone) and event.epoch == epoch):
        pass
    events.close()  # type: ignore[attr-defined]
    assert list(curve(sqlite)) == watch.begun == list(range(1, epoch + 2))  # the next one was trained meanwhile
    assert load_study(sqlite, "tiny").optuna_study.trials[0].state == TrialState.WAITING
    assert TrialResumed(0, epoch + 1, EPOCHS) in work(sqlite, quiet(), settings)
    assert watch.begun == list(range(1, EPOCHS + 1))
    assert curve(sqlite) == undisturbed


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_fault_of_the_database_is_waited_for(
    database: Database,
    settings: Settings,
    watch: Watch,
    undisturbed: dict[int, float],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Before the epoch is written, or after it, so that nobody knows; twice in a row."""
    monkeypatch.setattr("hpsearch.patience.STORAGE_PAUSE_SECONDS", 0.01)
    faults = iter([2, 2, 3])

    def sometimes(reports: Sequence[Report]) -> None:
        nonlocal due
        if reports[0].epoch == due:
            due = next(faults, 0)
            away(reports)

    due = next(faults)
    setattr(watch, place, sometimes)
    events = work(database, quiet(), settings)
    assert sum(isinstance(event, WorkerWarned) for event in events) == 1
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == list(range(1, EPOCHS + 1))
    assert curve(database) == undisturbed


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_database_that_stays_away_costs_no_epoch(
    database: Database, settings: Settings, watch: Watch, undisturbed: dict[int, float], place: str, epoch: int
) -> None:
    """Two epochs are in the checkpoint that are not known to be recorded."""
    setattr(watch, place, lambda reports: away(reports) if reports[0].epoch == epoch else None)
    create_study(database, quiet(), "tiny")
    with pytest.raises(StorageAway):
        list(run(database, "tiny", replace(settings, storage_wait_seconds=0.0), Interruption()))
    assert list(curve(database)) == list(range(1, epoch + (place == "after")))
    assert watch.begun == list(range(1, epoch + 2))
    setattr(watch, place, lambda _reports: None)
    expire(database)
    assert TrialResumed(0, epoch + 1, EPOCHS) in work(database, quiet(), settings)
    assert watch.begun == list(range(1, EPOCHS + 1))  # none was trained again
    assert curve(database) == undisturbed


def test_what_is_trained_after_the_lease_was_lost_is_never_written(
    database: Database, settings: Settings, watch: Watch, undisturbed: dict[int, float]
) -> None:
    asked: list[tuple[int, int]] = []  # tokens and epochs

    def steal(reports: Sequence[Report]) -> None:
        asked.append((reports[0].lease.token, reports[0].epoch))
        if asked[-1] == (1, 2):
            watch.wait_for_epoch(3)
            expire(database, stolen=True)

    watch.before = steal
    events = work(database, quiet(), settings)
    assert [event.state for event in events if isinstance(event, TrialEnded)] == ["LOST", "COMPLETE"]
    epochs = [event.epoch for event in events if isinstance(event, EpochDone)]
    assert epochs == [1, 1, 2, 3, 4, 5]  # taken over by the same worker, from the beginning
    assert asked == [(1, 1), (1, 2), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5)]
    assert curve(database) == undisturbed


def test_an_error_in_the_thread_ends_the_worker(sqlite: Database, settings: Settings, watch: Watch) -> None:
    def wrong(reports: Sequence[Report]) -> None:
        if reports[0].epoch == 2:
            raise LookupError("a mistake")

    watch.before = wrong
    with pytest.raises(LookupError, match="a mistake"):
        work(sqlite, quiet(), settings)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_worker_uses_one_connection(database: Database, settings: Settings, watch: Watch, lanes: int) -> None:
    create_study(database, quiet(6), "tiny")
    database.close()
    used = {"now": 0, "most": 0, "made": 0}

    def out(*_: Any) -> None:
        used["now"] += 1
        used["most"] = max(used["most"], used["now"])

    def back(*_: Any) -> None:
        used["now"] -= 1

    def made(*_: Any) -> None:
        used["made"] += 1

    for name, note in (("checkout", out), ("checkin", back), ("connect", made)):
        sqlalchemy_event.listen(database.engine, name, note)
    list(run(database, "tiny", replace(settings, lanes=lanes), Interruption()))
    assert used == {"now": 0, "most": 1, "made": 1}
    assert len(watch.threads) == 1


def test_a_round_costs_the_same_journeys_whatever_the_number_of_trials(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.search.session.BEAT_SECONDS", 1e9)  # signs of life come by the clock
    counts = []
    for lanes in (2, 12):
        create_study(sqlite, quiet(lanes), str(lanes))
        said: list[str] = []

        def note(_connection: Any, _cursor: Any, text: str, *_: Any, said: list[str] = said) -> None:
            said.append(text)

        sqlalchemy_event.listen(sqlite.engine, "before_cursor_execute", note)
        list(run(sqlite, str(lanes), replace(settings, lanes=lanes), Interruption()))
        sqlalchemy_event.remove(sqlite.engine, "before_cursor_execute", note)
        counts.append(len(said))
    assert counts[1] == counts[0]


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_a_worker_with_a_limit_takes_no_trial_too_many(sqlite: Database, settings: Settings, lanes: int) -> None:
    events = work(sqlite, quiet(20, "asha"), replace(settings, lanes=lanes), max_trials_here=7)
    assert sum(isinstance(event, TrialStarted) for event in events) == 7
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert [trial.state.is_finished() for trial in trials] == [True] * 7


def test_trials_that_were_taken_and_have_not_begun_go_back(sqlite: Database, settings: Settings, watch: Watch) -> None:
    """The reader goes away after a trial has ended, when the next one is taken already."""
    create_study(sqlite, quiet(3), "tiny")
    events = run(sqlite, "tiny", settings, Interruption())
    while not isinstance(next(events), TrialEnded):
        pass
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    events.close()  # type: ignore[attr-defined]
    assert load_study(sqlite, "tiny").optuna_study.trials[1].state == TrialState.WAITING
    work(sqlite, quiet(3), settings)
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert all(trial.params for trial in trials)
