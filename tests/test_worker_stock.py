"""The stock: lanes are filled at once, the database is waited for at decisions alone, and nothing held is lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from hpsearch.errors import StorageAway
from hpsearch.events import EpochDone, Event, TrialEnded, TrialResumed, TrialStarted
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.recipe import Recipe
from hpsearch.reporting import Errand
from hpsearch.search.session import Session
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.stock import Stock
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.open import Database
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.storage.tables import LEASES, TRIALS
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program
from hpsearch.train.side_by_side import SideBySide
from hpsearch.worker import run
from tests.studies import TINY

LANES = 4
HANGS_SECONDS = 30.0  # then a thread waits for the other in vain


def spec(trials: int = 24, epochs: int = 6, **replaced: str) -> StudySpec:
    """A study with rungs at epochs 1 and 3, whose trials share one program."""
    text = TINY.partition("[[first]]")[0].replace('["sgd", "adam"]', '["sgd"]')
    text = text.replace("epochs = 3", f"epochs = {epochs}").replace("trials = 6", f"trials = {trials}")
    for old, new in replaced.items():
        text = text.replace(old, new)
    return parse(text, "tiny.toml")


@pytest.fixture
def four(settings: Settings) -> Settings:
    """Four lanes."""
    return replace(settings, lanes=LANES)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.patience.STORAGE_PAUSE_SECONDS", 0.01)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What the ledger does, and whether an epoch trains meanwhile; what may be done meanwhile is done then."""
    done: list[tuple[str, bool]] = []
    trains, errand_done = threading.Event(), threading.Event()
    train_epoch, run_errand = SideBySide.train_epoch, Errand.run

    def trained(group: SideBySide) -> Any:
        trains.set()
        assert errand_done.wait(HANGS_SECONDS), "an epoch is waited for that waits itself"
        results = train_epoch(group)
        trains.clear()
        errand_done.clear()
        return results

    def ran(errand: Errand) -> None:
        if errand.placed is None:
            run_errand(errand)
            return
        assert trains.wait(HANGS_SECONDS), "nothing trains meanwhile"
        try:
            run_errand(errand)
        finally:
            errand_done.set()

    monkeypatch.setattr(SideBySide, "train_epoch", trained)
    monkeypatch.setattr(Errand, "run", ran)
    for name in ("report", "turn", "finish", "take", "set_up", "prepare"):
        original = getattr(ledger, name)

        def call(*arguments: Any, name: str = name, original: Callable[..., Any] = original, **named: Any) -> Any:
            what = f"{name} {sorted({one.epoch for one in arguments[1]})}" if name == "report" else name
            done.append((what, trains.is_set()))
            return original(*arguments, **named)

        monkeypatch.setattr(f"hpsearch.storage.ledger.{name}", call)
    return done


def until(events: Iterator[Event], ended: int) -> list[Event]:
    """Read events until so many trials have ended."""
    seen: list[Event] = []
    while sum(isinstance(event, TrialEnded) for event in seen) < ended:
        seen.append(next(events))
    return seen


def states(database: Database) -> list[TrialState]:
    return [trial.state for trial in load_study(database, "tiny").optuna_study.get_trials(deepcopy=False)]


def expire(database: Database) -> None:
    """Let all leases run out."""
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0))


def whole(database: Database, num: int) -> None:
    """So many trials have ended, and what is recorded of each fits together."""
    trials = load_study(database, "tiny").optuna_study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(num))
    for trial in trials:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED), trial.number
        assert list(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert len(trial.intermediate_values) in ({6} if trial.state == TrialState.COMPLETE else {1, 3})
        recipe = Recipe(**trial.user_attrs[RECIPE_KEY])
        assert recipe.learning_rate == trial.params["learning_rate"]
        assert [row["epoch"] for row in ledger.epochs(database, trial._trial_id)] == list(trial.intermediate_values)


def test_the_database_is_waited_for_at_decisions_alone(
    database: Database, four: Settings, beside: list[tuple[str, bool]]
) -> None:
    create_study(database, spec(200), "tiny")
    events = run(database, "tiny", four, Interruption())
    until(events, 4)  # the first wave: how long an epoch takes was not known before it
    del beside[:]
    until(events, 24)
    waited_for = {name for name, trains in beside if not trains}
    meanwhile = {name for name, trains in beside if trains}
    assert waited_for <= {f"report {rungs}" for rungs in ([1], [3], [6], [1, 3], [1, 6], [3, 6], [1, 3, 6])}
    assert {"turn", "set_up"} <= meanwhile
    assert any(name.startswith("report") for name in meanwhile)
    events.close()  # type: ignore[attr-defined]
    assert TrialState.RUNNING not in states(database)


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_the_budget_is_exact(database: Database, settings: Settings, lanes: int) -> None:
    create_study(database, spec(), "tiny")
    events = list(run(database, "tiny", replace(settings, lanes=lanes), Interruption()))
    whole(database, 24)
    assert sum(isinstance(event, TrialStarted) for event in events) == 24
    assert sum(isinstance(event, TrialEnded) for event in events) == 24
    assert not list(settings.home.glob("checkpoints/*/*"))


def test_a_trial_begins_with_the_recipe_that_is_recorded_and_joins_the_others(
    sqlite: Database, four: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it stayed in the stock while others went on."""
    create_study(sqlite, spec(60), "tiny")
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=True))
    add, groups, prepare = Lanes.add, Lanes.groups, ledger.prepare
    num_groups, moved = [], []

    def added(lanes: Lanes, key: int, recipe: Recipe, *rest: Any) -> None:
        assert Recipe(**sqlite.storage.get_trial_user_attrs(key)[RECIPE_KEY]) == recipe
        add(lanes, key, recipe, *rest)

    def counted(lanes: Lanes) -> Any:
        found = list(groups(lanes))
        num_groups.append(len(found))
        return iter(found)

    def noted(database: Database, trials: Any, lease_seconds: float) -> set[int]:
        moved.extend(trials)
        return prepare(database, trials, lease_seconds)

    monkeypatch.setattr(Lanes, "add", added)
    monkeypatch.setattr(Lanes, "groups", counted)
    monkeypatch.setattr("hpsearch.storage.ledger.prepare", noted)
    list(run(sqlite, "tiny", four, Interruption()))
    whole(sqlite, 60)
    assert set(num_groups) <= {0, 1}
    assert moved


@pytest.mark.parametrize("how", ["reader", "signal", "paused", "stopped"])
def test_the_stock_goes_back_when_the_worker_leaves(
    database: Database, four: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("hpsearch.search.session.BEAT_SECONDS", 0.0)
    create_study(database, spec(100), "tiny")
    study, interruption, begin = load_study(database, "tiny"), Interruption(), Program.begin_epoch
    most: list[int] = []
    give_back = Stock.give_back

    def noted(stock: Stock) -> None:
        most.append(len(stock))
        give_back(stock)

    monkeypatch.setattr(Stock, "give_back", noted)
    events = run(database, "tiny", four, interruption)
    seen = until(events, 6)

    def interrupted(program: Program) -> None:
        begin(program)
        interruption.requested = True
        raise Interrupted

    if how == "signal":
        monkeypatch.setattr(Program, "begin_epoch", interrupted)
    elif how != "reader":
        fleet.control(database, study.study_id, budget.PAUSED if how == "paused" else budget.STOPPED)
    if how == "reader":
        events.close()  # type: ignore[attr-defined]
    else:
        seen += list(events)
    assert max(most) > 0, "nothing was in stock"
    assert TrialState.RUNNING not in states(database)
    assert TrialState.WAITING in states(database)
    monkeypatch.setattr(Program, "begin_epoch", begin)
    fleet.control(database, study.study_id, budget.RUNNING)
    trials = load_study(database, "tiny").optuna_study.get_trials(deepcopy=False)
    waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
    left = list(run(database, "tiny", four, Interruption(), len(waiting)))
    assert {event.trial for event in left if isinstance(event, TrialStarted)} >= set(waiting)
    assert set(states(database)) == {TrialState.COMPLETE, TrialState.PRUNED}


def test_what_others_have_taken_from_the_stock_does_not_begin(
    database: Database, four: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage stays away for longer than leases last while a rung is decided."""
    create_study(database, spec(60), "tiny")
    decide, hold, stocks = Session.decide, Stock.hold, list[Stock]()
    stolen: list[int] = []

    def noted(stock: Stock, num_asked: int, taken: Any) -> None:
        stocks.append(stock)
        hold(stock, num_asked, taken)

    def late(session: Session, reports: Any, kept: set[int]) -> Any:
        (stock,) = set(stocks)
        if not stolen and len(stock) > 1:
            stolen.extend(lease.number for lease in stock.leases.values())
            with database.engine.begin() as connection:
                those = LEASES.c.trial_id.in_(stock.leases)
                connection.execute(update(LEASES).where(those).values(token=LEASES.c.token + 1, owner="another"))
            stock._renewed -= 2 * four.lease_seconds
        return decide(session, reports, kept)

    monkeypatch.setattr(Stock, "hold", noted)
    monkeypatch.setattr(Session, "decide", late)
    events = run(database, "tiny", four, Interruption())
    seen = until(events, 20)
    events.close()  # type: ignore[attr-defined]
    assert stolen
    assert not {event.trial for event in seen if isinstance(event, TrialStarted)} & set(stolen)
    assert "LOST" not in {event.state for event in seen if isinstance(event, TrialEnded)}


@pytest.mark.parametrize("name", ["turn", "set_up", "prepare"])
@pytest.mark.parametrize("after", [False, True])
def test_a_fault_while_the_stock_is_filled(
    database: Database, four: Settings, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    """Before it is done, or after it, so that nobody knows; time and again."""
    create_study(database, spec(), "tiny")
    original, calls = getattr(ledger, name), []

    def sometimes(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) % 3:
            return original(*arguments, **named)
        if after:
            original(*arguments, **named)
        raise OperationalError("X", {}, Exception("connection lost"))

    with monkeypatch.context() as faults:
        faults.setattr(f"hpsearch.storage.ledger.{name}", sometimes)
        events = list(run(database, "tiny", replace(four, lease_seconds=1.0), Interruption()))
    expire(database)
    events += list(run(database, "tiny", four, Interruption()))  # what it was granted without hearing of it, if any
    assert len(calls) > 3
    whole(database, 24)
    ended = [event.trial for event in events if isinstance(event, TrialEnded) and event.state != "LOST"]
    assert sorted(ended) == list(range(24))


def test_a_crash_before_an_end_is_recorded_leaves_it_to_be_decided_again(
    database: Database, four: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(database, spec(), "tiny")
    turn = Session.turn
    calls: list[int] = []
    leaving: list[tuple[int, TrialState]] = []

    def crashed(session: Session, ends: Any, *rest: Any) -> Any:
        calls.append(len(ends))
        if len(ends) and len(calls) > 4:
            leaving.extend((end.lease.number, end.state) for end in ends)
            raise LookupError("as if the process had gone")
        return turn(session, ends, *rest)

    monkeypatch.setattr(Session, "turn", crashed)
    with pytest.raises(LookupError):
        list(run(database, "tiny", replace(four, checkpoint_seconds=0.0), Interruption()))
    assert leaving
    assert all(states(database)[number] == TrialState.RUNNING for number, _ in leaving)
    monkeypatch.undo()
    expire(database)
    events = list(run(database, "tiny", four, Interruption()))
    whole(database, 24)
    epochs = {event.trial: event.epoch for event in events if isinstance(event, EpochDone)}
    ends = {event.trial: event.epoch for event in events if isinstance(event, TrialEnded)}
    for number, state in leaving:
        assert ends[number] > 0
        assert state == TrialState.COMPLETE or epochs[number] == ends[number]  # it came to its rung again


def test_a_trial_that_was_complete_when_the_storage_went_away_trains_no_more(
    sqlite: Database, four: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short one has left its lane, the long one trains on; the end cannot be recorded."""
    text = 'learning_rate = 0.01\nmomentum = 0.9\noptimizer = "sgd"\n'
    study = (
        TINY.partition("[[first]]")[0].replace("[space]\n", "[space]\nepochs = [2, 6]\n").replace("epochs = 3\n", "")
    )
    study = study.replace('"asha"', '"none"').replace("trials = 6", "trials = 2")
    study += "".join(f"[[first]]\nepochs = {epochs}\n{text}" for epochs in (2, 6))
    create_study(sqlite, parse(study, "tiny.toml"), "tiny")
    begun: list[int] = []
    begin = Program.begin_epoch

    def noted(program: Program) -> None:
        begun.append(program.recipe.epochs)
        begin(program)

    def away(*_: Any) -> Any:
        raise OperationalError("X", {}, Exception("connection lost"))

    monkeypatch.setattr(Program, "begin_epoch", noted)
    with monkeypatch.context() as patch:
        patch.setattr("hpsearch.storage.ledger.turn", away)
        patch.setattr("hpsearch.storage.ledger.finish", away)
        with pytest.raises(StorageAway):
            list(run(sqlite, "tiny", replace(four, storage_wait_seconds=0.05), Interruption()))
    assert begun.count(2) == 2
    assert states(sqlite) == [TrialState.RUNNING] * 2
    expire(sqlite)
    events = list(run(sqlite, "tiny", four, Interruption()))
    assert TrialResumed(0, 2, 2) in events
    assert begun.count(2) == 2  # never trained again
    assert begun.count(6) == 6  # nor was an epoch of the other one
    assert states(sqlite) == [TrialState.COMPLETE] * 2
    assert not list(four.home.glob("checkpoints/*/*"))


def test_a_signal_after_all_trials_have_ended_leaves_none_to_be_recorded(
    sqlite: Database, four: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(4, epochs=2, **{'"asha"': '"none"'}), "tiny")
    interruption, decide = Interruption(), Session.decide

    def asked(session: Session, reports: Any, kept: set[int]) -> Any:
        interruption.requested = reports[0].epoch == 2
        return decide(session, reports, kept)

    monkeypatch.setattr(Session, "decide", asked)
    with suppress(Interrupted):
        list(run(sqlite, "tiny", four, interruption))
    assert states(sqlite) == [TrialState.COMPLETE] * 4


def test_one_lane_suggests_from_all_that_is_known(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(6), "tiny")
    set_up = ledger.set_up

    def checked(database: Database, study_id: int, drawn: Any) -> Any:
        with database.engine.connect() as connection:
            running = select(TRIALS.c.number).where(TRIALS.c.state == TrialState.RUNNING)
            assert list(connection.scalars(running)) == [one.lease.number for one in drawn]
        return set_up(database, study_id, drawn)

    monkeypatch.setattr("hpsearch.storage.ledger.set_up", checked)
    list(run(sqlite, "tiny", replace(settings, lanes=1), Interruption()))
    whole(sqlite, 6)
