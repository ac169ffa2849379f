"""What a worker may meet at the worst moment: nothing is lost, nothing trains twice, and the record stays whole."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from hpsearch.errors import HpsearchError, StorageAway
from hpsearch.events import EpochDone, TrialEnded, TrialResumed, TrialStarted, WorkerLeft
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.search.session import Session, Verdict
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import ledger
from hpsearch.storage.ledger import Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study, progress
from hpsearch.storage.tables import LEASES
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program
from hpsearch.train.side_by_side import SideBySide
from hpsearch.trial import Outcome, Run
from hpsearch.worker import Limits, run, serve
from tests.studies import CANDIDATES, TINY


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.patience.STORAGE_PAUSE_SECONDS", 0.01)


def away(*_: Any) -> Any:
    """What a storage does that has gone."""
    raise OperationalError("X", {}, Exception("connection lost"))


def spec(epochs: int, trials: int, text: str = TINY) -> StudySpec:
    """A study without a pruner."""
    text = text.replace("epochs = 3", f"epochs = {epochs}").replace("trials = 6", f"trials = {trials}")
    return parse(text.replace('"asha"', '"none"'), "tiny.toml")


def expire(database: Database, *, stolen: bool = False) -> None:
    """Let all leases run out; or let somebody else take them."""
    with database.engine.begin() as connection:
        values = {"expires": 0.0, "token": LEASES.c.token + stolen}
        connection.execute(update(LEASES).values(values))


def once(monkeypatch: pytest.MonkeyPatch, name: str, *, before: Callable[[], None], after: bool = False) -> None:
    """The first call of a function of the ledger: something happens, and the answer is lost before or after it."""
    original, calls = getattr(ledger, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return original(*arguments, **named)
        if after:
            original(*arguments, **named)
        before()
        raise OperationalError("X", {}, Exception("connection lost"))

    monkeypatch.setattr(f"hpsearch.storage.ledger.{name}", call)


def states(database: Database, name: str = "tiny") -> list[TrialState]:
    return [trial.state for trial in load_study(database, name).optuna_study.get_trials(deepcopy=False)]


def nothing() -> None:
    """Happens."""


def test_a_trial_that_the_worker_takes_again_has_one_lane(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is away for longer than leases last while a trial ends: its worker adopts its own other one."""
    text = TINY.partition("[[first]]")[0].replace('["sgd", "adam"]', '["sgd"]')
    create_study(sqlite, spec(8, 6, text), "tiny")
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=True))
    decides, outcome = Run.decides, Run.outcome
    monkeypatch.setattr(Run, "decides", lambda one, result: decides(one, result) or one.number == 0)

    def stopped(one: Run, result: Any, pruned: bool) -> Outcome | None:
        if one.number == 0 and result.epoch == 4:
            return Outcome(TrialState.PRUNED, result.epoch, 0.1, "for the test")
        return outcome(one, result, pruned)

    monkeypatch.setattr(Run, "outcome", stopped)
    once(monkeypatch, "turn", before=lambda: expire(sqlite))
    written: list[tuple[int, int]] = []
    report = ledger.report

    def watched(database: Database, reports: Any, lease_seconds: float) -> set[int]:
        written.extend((one.lease.number, one.epoch) for one in reports)
        return report(database, reports, lease_seconds)

    monkeypatch.setattr("hpsearch.storage.ledger.report", watched)
    events = list(run(sqlite, "tiny", replace(settings, lanes=2, checkpoint_seconds=1e9), Interruption()))
    assert len(written) == len(set(written))
    for trial in load_study(sqlite, "tiny").optuna_study.trials:
        assert list(trial.intermediate_values) == list(range(1, 5 if trial.number == 0 else 9))
    starts = [event.trial for event in events if isinstance(event, TrialStarted)]
    ends = [event.trial for event in events if isinstance(event, TrialEnded)]
    assert sorted(starts) == sorted(ends)
    assert starts.count(1) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_last_epoch_without_a_value_is_no_complete_trial(
    sqlite: Database, settings: Settings, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = f'[objective]\nmetric = "validation_loss"\n[sampler]\nname = "{sampler}"\n'
    text = TINY.partition("[[first]]")[0] + rest
    create_study(sqlite, spec(2, 12, text), "tiny")
    validate, calls = Program.validate, []

    def broken(program: Program) -> tuple[float, float]:
        calls.append(1)
        return (math.nan, 0.1) if len(calls) == 4 else validate(program)

    monkeypatch.setattr(Program, "validate", broken)
    list(run(sqlite, "tiny", settings, Interruption()))
    assert states(sqlite) == [TrialState.PRUNED if number == 1 else TrialState.COMPLETE for number in range(12)]


def test_a_diverged_last_epoch_that_was_not_told_is_pruned(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage goes away between the record of the epoch and the end of the trial; the checkpoint stays."""
    text = TINY.partition("[[first]]")[0].replace("learning_rate = {", "learning_rate = { low = 1e29, high = 1e30 } #")
    create_study(sqlite, spec(1, 1, text), "tiny")

    with monkeypatch.context() as patch:
        patch.setattr("hpsearch.storage.ledger.turn", away)
        patch.setattr("hpsearch.storage.ledger.finish", away)
        with pytest.raises(StorageAway):
            list(run(sqlite, "tiny", replace(settings, storage_wait_seconds=0.05), Interruption()))
    expire(sqlite)
    events = list(run(sqlite, "tiny", settings, Interruption()))
    assert any(isinstance(event, TrialResumed) for event in events)
    assert states(sqlite) == [TrialState.PRUNED]


@pytest.mark.parametrize("call", ["hpsearch.storage.ledger.report", "hpsearch.search.session.failing"])
def test_a_rung_that_could_not_be_recorded_is_decided_later(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The storage goes away when the epoch of a rung is to be recorded, or decided on; the checkpoint holds it."""
    create_study(sqlite, spec(3, 1), "tiny")

    with monkeypatch.context() as patch:
        patch.setattr(call, away)
        with pytest.raises(StorageAway):
            list(run(sqlite, "tiny", replace(settings, storage_wait_seconds=0.05), Interruption()))
    expire(sqlite)
    decided: list[int] = []

    def out(_session: Session, reports: list[Report], kept: set[int]) -> Verdict:
        decided.extend(one.epoch for one in reports)
        return Verdict(frozenset(), frozenset(kept))

    monkeypatch.setattr(Session, "decide", out)
    list(run(sqlite, "tiny", settings, Interruption()))
    (trial,) = load_study(sqlite, "tiny").optuna_study.trials
    assert trial.state == TrialState.PRUNED
    assert decided == list(trial.intermediate_values)  # and none was trained after them


def test_a_trial_that_was_lost_does_not_count(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--max-trials 1` trains one that counts, and leaves."""
    create_study(sqlite, spec(3, 6), "tiny")
    report, calls = ledger.report, []

    def stolen(*arguments: Any) -> set[int]:
        calls.append(1)
        if len(calls) == 2:
            expire(sqlite, stolen=True)
        return report(*arguments)

    monkeypatch.setattr("hpsearch.storage.ledger.report", stolen)
    events = []
    for event in serve(sqlite, "tiny", settings, Interruption(), Limits(max_trials=1)):
        events.append(event)
        assert len(events) < 50, "it never ends"
    assert isinstance(events[-1], WorkerLeft)
    ends = [event.state for event in events if isinstance(event, TrialEnded)]
    assert ends == ["LOST", "COMPLETE"]


def test_a_reader_who_leaves_while_trials_go_back(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(6, 1), "tiny")
    begin, interruption = Program.begin_epoch, Interruption()

    def interrupted(program: Program) -> None:
        begin(program)
        if program.epoch == 4:
            interruption.requested = True
            raise Interrupted

    monkeypatch.setattr(Program, "begin_epoch", interrupted)
    events = run(sqlite, "tiny", settings, interruption)
    for event in events:
        if isinstance(event, EpochDone) and event.epoch == 4:
            break
    events.close()  # type: ignore[attr-defined]
    assert states(sqlite) == [TrialState.WAITING]
    assert [path.name.partition(".")[0] for path in settings.home.glob("checkpoints/*/*")][-1:]


def test_a_signal_at_the_end_of_an_epoch_loses_nothing(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(8, 1), "tiny")
    interruption, train_epoch, calls = Interruption(), SideBySide.train_epoch, []

    def signalled(group: SideBySide) -> Any:
        results = train_epoch(group)
        calls.append(1)
        if len(calls) == 6:
            interruption._handle(2, None)
        return results

    monkeypatch.setattr(SideBySide, "train_epoch", signalled)
    events = list(run(sqlite, "tiny", settings, interruption))
    end = events[-1]
    assert isinstance(end, TrialEnded)
    assert (end.state, end.epoch) == ("WAITING", 6)
    monkeypatch.setattr(SideBySide, "train_epoch", train_epoch)
    epochs = [event.epoch for event in run(sqlite, "tiny", settings, Interruption()) if isinstance(event, EpochDone)]
    assert epochs == [7, 8]


def test_an_end_that_went_through_unheard_is_told_once(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(2, 1), "tiny")
    once(monkeypatch, "turn", before=nothing, after=True)
    once(monkeypatch, "finish", before=nothing, after=True)
    events = list(run(sqlite, "tiny", settings, Interruption()))
    assert [event.state for event in events if isinstance(event, TrialEnded)] == ["COMPLETE"]
    assert not list(settings.home.glob("checkpoints/*/*"))


def test_an_epoch_recorded_twice_costs_its_time_once(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(3, 1), "tiny")
    original, calls = ledger.report, []

    def slow(database: Database, reports: Any, lease_seconds: float) -> set[int]:
        kept = original(database, [replace(one, seconds=100.0) for one in reports], lease_seconds)
        calls.append(1)
        if len(calls) < 3:
            raise OperationalError("X", {}, Exception("connection lost"))
        return kept

    monkeypatch.setattr("hpsearch.storage.ledger.report", slow)
    list(run(sqlite, "tiny", settings, Interruption()))
    assert len(calls) == 5
    with sqlite.engine.connect() as connection:
        assert connection.scalars(select(LEASES.c.seconds)).all() == [300.0]


def test_healthy_trials_go_back_when_others_fail(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(40, 6), "tiny")
    train_block, healthy = Program.train_block, []

    def some_fail(program: Program, *block: Any) -> None:
        healthy.append(program.recipe.seed)
        if program.recipe.seed != healthy[0]:
            raise RuntimeError("broken")
        train_block(program, *block)

    monkeypatch.setattr(Program, "train_block", some_fail)
    with pytest.raises(HpsearchError, match="3 trials in a row failed, the last one with: RuntimeError: broken"):
        list(run(sqlite, "tiny", replace(settings, lanes=2), Interruption()))
    assert states(sqlite).count(TrialState.FAIL) == 3
    assert states(sqlite)[0] == TrialState.WAITING


def test_a_reader_who_leaves_at_the_first_of_several_ends(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, spec(2, 2), "tiny")
    events = run(sqlite, "tiny", replace(settings, lanes=2), Interruption())
    for event in events:
        if isinstance(event, TrialEnded):
            break
    events.close()  # type: ignore[attr-defined]
    assert states(sqlite) == [TrialState.COMPLETE] * 2
    assert not list(settings.home.glob("checkpoints/*/*"))


def test_a_first_epoch_that_outlasts_the_lease(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how long an epoch takes before the first has ended, and nobody takes its trials meanwhile."""
    train_epoch, first = SideBySide.train_epoch, iter([True])

    def slow(group: SideBySide) -> Any:
        if next(first, False):
            time.sleep(3.0)
            assert progress(sqlite, load_study(sqlite, "tiny")).abandoned == 0
        return train_epoch(group)

    monkeypatch.setattr(SideBySide, "train_epoch", slow)
    create_study(sqlite, spec(2, 4), "tiny")
    list(run(sqlite, "tiny", replace(settings, lanes=2, lease_seconds=1.0), Interruption()))
    assert states(sqlite) == [TrialState.COMPLETE] * 4


def test_a_first_epoch_that_hangs_is_given_up(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.reporting.FIRST_EPOCH_SECONDS", 0.5)
    train_epoch, seen = SideBySide.train_epoch, list[int]()

    def hanging(group: SideBySide) -> Any:
        if not seen:
            time.sleep(3.0)
            seen.append(progress(sqlite, load_study(sqlite, "tiny")).abandoned)
        return train_epoch(group)

    monkeypatch.setattr(SideBySide, "train_epoch", hanging)
    create_study(sqlite, spec(2, 2), "tiny")
    list(run(sqlite, "tiny", replace(settings, lanes=2, lease_seconds=1.0), Interruption()))
    assert seen == [2]


def test_weights_are_kept_before_nobody_trains_them_again(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may be killed between the end of a trial over seeds, once it is recorded, and what comes after."""
    original, seen = ledger._finish, list[tuple[int, int]]()

    def watched(connection: Any, ends: Any) -> set[int]:
        complete = sum(end.state == TrialState.COMPLETE for end in ends)
        if complete:
            kept = len(list(settings.home.glob("weights/*/*.safetensors")))
            seen.append((sum(num for num, _ in seen[-1:]) + complete, kept))
        return original(connection, ends)

    monkeypatch.setattr(ledger, "_finish", watched)
    create_study(sqlite, parse(CANDIDATES.replace('"race"', '"none"'), "seeds.toml"), "tiny")
    list(run(sqlite, "tiny", replace(settings, lanes=3), Interruption()))
    assert seen
    assert all(kept >= complete for complete, kept in seen)


def test_a_trial_of_a_candidate_that_is_out_ends_with_its_last_value(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(6, 1), "tiny")
    events = run(sqlite, "tiny", replace(settings, checkpoint_seconds=0.0), Interruption())
    while not (isinstance(event := next(events), EpochDone) and event.epoch == 3):
        pass
    events.close()  # type: ignore[attr-defined]
    monkeypatch.setattr("hpsearch.search.session.Session.out", lambda _, leases: {one.trial_id for one in leases})
    list(run(sqlite, "tiny", settings, Interruption()))
    (trial,) = load_study(sqlite, "tiny").optuna_study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


def test_the_time_in_which_a_worker_is_suspended_is_no_device_time(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do its leases grow to ten times of it: they would hold its trials for days."""
    create_study(sqlite, spec(3, 1), "tiny")
    suspended, clock, end_epoch = [0.0], time.monotonic, Program.end_epoch
    lasting: list[float] = []
    report = ledger.report

    def waking(program: Program, started: float) -> Any:
        suspended[0] = 36_000.0 if program.epoch == 1 else suspended[0]
        return end_epoch(program, started)

    def watched(database: Database, reports: Any, lease_seconds: float) -> set[int]:
        lasting.append(lease_seconds)
        return report(database, reports, lease_seconds)

    monkeypatch.setattr(Program, "end_epoch", waking)
    monkeypatch.setattr("hpsearch.training.time.monotonic", lambda: clock() + suspended[0])
    monkeypatch.setattr("hpsearch.storage.ledger.report", watched)
    list(run(sqlite, "tiny", settings, Interruption()))
    assert states(sqlite) == [TrialState.COMPLETE]
    with sqlite.engine.connect() as connection:
        assert connection.scalar(select(LEASES.c.seconds)) < 2 * settings.lease_seconds
    assert max(lasting) <= 11 * settings.lease_seconds
