"""The ledger: exact budgets under racing, and rows that Optuna's public API reads back as its own."""

import math
import time

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import text

from hpsearch.errors import StorageError
from hpsearch.spec import parse
from hpsearch.storage import ledger, locks
from hpsearch.storage.events import FAILED, Happening, events
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Drawn, End, Report
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study, progress
from tests.postgres import PostgresServer
from tests.storage.trials import MEASURED, drawn, in_eight_threads, plan, report, take, take_many
from tests.studies import TINY


@pytest.fixture
def database(hundred: Database) -> Database:
    """With the study `tiny`, which may have 100 trials."""
    return hundred


def test_eight_threads_start_exactly_the_budget(database: Database) -> None:
    create_study(database, parse(TINY, "tiny.toml"), "twenty", 20)
    study = load_study(database, "twenty")
    started: list[int] = []

    def take_all(owner: str, num: int) -> None:
        while leases := take_many(database, study, num, owner):
            started.extend(lease.trial_id for lease in leases)

    in_eight_threads(take_all)
    assert len(started) == len(set(started)) == 20
    assert [trial.number for trial in study.optuna_study.trials] == list(range(20))
    late = ledger.take(database, study.study_id, 3, "late", 60.0, study.plan)
    assert (late.leases, late.reason) == ((), "all of its 20 trials have been started")


def test_a_waiting_trial_goes_first(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    study.optuna_study.get_trials()  # Optuna's cache refuses trials that it has not seen
    trial = optuna.Trial(study.optuna_study, lease.trial_id)
    assert trial.number == 0
    assert trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True) == 0.01


def test_a_new_trial_is_what_optuna_would_make(database: Database, study: LoadedStudy) -> None:
    take(database, study)  # the waiting one
    take(database, study)
    study.optuna_study.ask()
    ours, theirs = study.optuna_study.trials[1:]
    assert (ours.number, theirs.number) == (1, 2)
    assert abs((theirs.datetime_start - ours.datetime_start).total_seconds()) < 60
    for name in ("state", "params", "distributions", "values", "user_attrs", "system_attrs", "intermediate_values"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_parameters_read_back_as_optunas_own(database: Database, study: LoadedStudy) -> None:
    distributions = {
        "a": FloatDistribution(1e-5, 1.0, log=True),
        "b": IntDistribution(1, 9, step=2),
        "c": CategoricalDistribution(("x", 3, 2.5)),
    }
    values = {"a": 0.001, "b": 5, "c": 3}
    study.optuna_study.enqueue_trial(values)
    lease = take(database, study)
    internal = {name: (distributions[name].to_internal_repr(values[name]), distributions[name]) for name in values}
    one = Drawn(lease, internal, {"note": {"k": [1]}}, {"own": 1}, "digest")
    for _ in range(2):  # once more changes nothing
        assert ledger.set_up(database, study.study_id, [one]) == ({lease.trial_id}, set())
    ledger.finish(database, [End(lease, TrialState.COMPLETE, 0.5)])
    theirs = study.optuna_study.ask(distributions)
    study.optuna_study.tell(theirs, 0.5)
    first, second = study.optuna_study.trials[:2]
    assert first.params == second.params == values
    assert first.distributions == second.distributions
    assert first.user_attrs == {"note": {"k": [1]}}
    assert first.system_attrs["own"] == 1


@pytest.mark.parametrize("value", [0.25, math.inf, -math.inf, math.nan, 1e-300])
def test_a_report_reads_back_as_optunas_own(database: Database, study: LoadedStudy, value: float) -> None:
    lease = take(database, study)
    theirs = study.optuna_study.ask()
    for epoch in (1, 2):
        report(database, lease, epoch, value)
        theirs.report(value, epoch)
    first, second = (study.optuna_study.trials[number].intermediate_values for number in (0, 1))
    assert repr(first) == repr(second)
    assert [row["epoch"] for row in ledger.epochs(database, lease.trial_id)] == [1, 2]


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (TrialState.COMPLETE, 0.25),
        (TrialState.COMPLETE, math.inf),
        (TrialState.PRUNED, 0.25),
        (TrialState.PRUNED, None),
        (TrialState.FAIL, None),
    ],
)
def test_an_end_reads_back_as_optunas_own(
    database: Database, study: LoadedStudy, state: TrialState, value: float | None
) -> None:
    lease = take(database, study)
    theirs = study.optuna_study.ask()
    if value is not None:
        report(database, lease, 1, value)
        theirs.report(value, 1)
    ledger.finish(database, [End(lease, state, value, {"hpsearch:reason": "because"})])
    study.optuna_study.tell(theirs, value if state == TrialState.COMPLETE else None, state=state)
    ours, other = study.optuna_study.trials
    for name in ("state", "values", "intermediate_values", "params", "distributions"):
        assert getattr(ours, name) == getattr(other, name), name
    assert abs((other.datetime_complete - ours.datetime_complete).total_seconds()) < 60
    assert ours.user_attrs == {"hpsearch:reason": "because"}


def test_an_epoch_reported_again_replaces_itself(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    for value in (0.1, 0.3):
        ledger.report(database, [Report(lease, 1, value, MEASURED | {"training_loss": value})], 60.0)
    assert study.optuna_study.trials[0].intermediate_values == {1: 0.3}
    assert [(row["epoch"], row["training_loss"]) for row in ledger.epochs(database, lease.trial_id)] == [(1, 0.3)]


def test_metrics_that_are_not_finite_are_null(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    metrics = MEASURED | {"training_loss": math.nan, "gradient_norm": math.inf}
    ledger.report(database, [Report(lease, 1, math.nan, metrics)], 60.0)
    row = ledger.epochs(database, lease.trial_id)[0]
    assert row["training_loss"] is row["gradient_norm"] is None
    assert row["validation_loss"] == 0.5


def test_many_trials_are_written_at_once(database: Database, study: LoadedStudy) -> None:
    leases = take_many(database, study, 64)
    assert [lease.number for lease in leases] == list(range(64))
    distributions = {"x": FloatDistribution(0.0, 1.0), "c": CategoricalDistribution(("a", "b"))}
    everything = [
        Drawn(lease, {name: (0.0, kind) for name, kind in distributions.items()}, {"n": i}, {}, f"digest {i}")
        for i, lease in enumerate(leases)
    ]
    assert ledger.set_up(database, study.study_id, everything) == ({lease.trial_id for lease in leases}, set())
    for epoch in (1, 2, 3):
        reports = [Report(lease, epoch, lease.number + epoch / 10, MEASURED) for lease in leases]
        assert ledger.report(database, reports, 60.0) == {lease.trial_id for lease in leases}
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    ends = [End(lease, states[i % 3], None if i % 3 == 2 else float(i), {"why": i}) for i, lease in enumerate(leases)]
    assert ledger.finish(database, ends) == {lease.trial_id for lease in leases}
    for number, trial in enumerate(study.optuna_study.trials):
        assert trial.state == states[number % 3]
        assert trial.value == (None if number % 3 == 2 else float(number))
        assert trial.intermediate_values == {epoch: number + epoch / 10 for epoch in (1, 2, 3)}
        assert trial.params == {"x": 0.0, "c": "a"}
        assert trial.user_attrs == {"n": number, "why": number}


def refused(database: Database, study: LoadedStudy, lease: Lease) -> None:
    """Nothing may be written under this lease."""
    assert ledger.report(database, [Report(lease, 1, 0.1, MEASURED)], 60.0) == set()
    assert ledger.set_up(database, study.study_id, [drawn(lease, "another")]) == (set(), set())
    assert not ledger.cut_back(database, lease, 0)
    assert ledger.release(database, [(lease, 0)], "test") == set()
    assert ledger.finish(database, [End(lease, TrialState.COMPLETE, 0.9, {"a": 1})]) == set()


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_an_ended_trial_is_never_touched(database: Database, study: LoadedStudy, state: TrialState) -> None:
    lease = take(database, study)
    value = 0.5 if state == TrialState.COMPLETE else None
    study.optuna_study.tell(0, value, state=state)  # by somebody else, through Optuna
    before = study.optuna_study.trials[0]
    refused(database, study, lease)
    assert study.optuna_study.trials[0] == before
    assert ledger.epochs(database, lease.trial_id) == []


def test_what_an_exception_says_is_no_fault_of_the_storage(database: Database, study: LoadedStudy) -> None:
    """PostgreSQL takes no NUL, and no database bytes that are no text."""
    lease = take(database, study)
    told = Happening(FAILED, "broken: \0 and \udcff")
    assert ledger.finish(database, [End(lease, TrialState.FAIL, event=told)])
    assert events(database, study.study_id)[0]["text"] == "broken: \N{REPLACEMENT CHARACTER} and ?"


def test_who_lost_the_lease_writes_nothing(database: Database, study: LoadedStudy) -> None:
    old, other = take_many(database, study, 2, "old", 0.0)
    report(database, old, 1, 0.1, 0.0)
    report(database, other, 1, 0.5)
    time.sleep(0.01)
    new = take(database, study, "new")
    assert (new.trial_id, new.token, new.owner, new.epoch) == (old.trial_id, old.token + 1, "new", 1)
    before = study.optuna_study.trials[0]
    refused(database, study, old)
    assert study.optuna_study.trials[0] == before
    both = [Report(old, 2, 0.9, MEASURED), Report(other, 2, 0.6, MEASURED)]
    assert ledger.report(database, both, 60.0) == {other.trial_id}  # the rest of a batch is written
    report(database, new, 2, 0.2)
    assert study.optuna_study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    assert study.optuna_study.trials[1].intermediate_values == {1: 0.5, 2: 0.6}


def test_a_process_that_took_its_own_trial_again_cannot_use_the_old_lease(
    database: Database, study: LoadedStudy
) -> None:
    old = take(database, study, "me", 0.0)
    time.sleep(0.01)
    assert take(database, study, "me").trial_id == old.trial_id
    refused(database, study, old)


def test_a_lease_that_is_renewed_is_not_adopted(database: Database, study: LoadedStudy) -> None:
    first = take(database, study, "first", seconds=0.0)
    report(database, first, 1, 0.1, 60.0)
    assert take(database, study, "second").trial_id != first.trial_id
    assert progress(database, study).abandoned == 0
    report(database, first, 2, 0.1, 60.0)


def test_owners_that_vanish_without_an_epoch_are_counted(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study, "first", 0.0)
    for crashes in (1, 2):
        time.sleep(0.01)
        lease = take(database, study, f"owner {crashes}", 0.0)
        assert lease.crashes == crashes
    report(database, lease, 1, 0.1, 0.0)  # it does get on: the count begins anew
    for crashes in (1, 2):
        time.sleep(0.01)
        assert take(database, study, f"later owner {crashes}", 0.0).crashes == crashes
    time.sleep(0.01)
    assert take(database, study).trial_id != lease.trial_id
    assert study.optuna_study.trials[0].state == TrialState.FAIL
    assert "3 workers in a row vanished" in study.optuna_study.trials[0].user_attrs["hpsearch:reason"]


def test_a_released_trial_is_taken_again_with_what_it_has(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    one = Drawn(lease, {"x": (0.25, FloatDistribution(0.0, 1.0))}, {}, {}, "digest")
    ledger.set_up(database, study.study_id, [one])
    for epoch in (1, 2, 3):
        report(database, lease, epoch, 0.1)
    assert ledger.release(database, [(lease, 2)], "a test") == {lease.trial_id}
    now = progress(database, study)
    assert (now.finished, now.running) == (0, 0)
    trial = study.optuna_study.trials[0]
    assert (trial.state, trial.intermediate_values, trial.params) == (TrialState.WAITING, {1: 0.1, 2: 0.1}, {"x": 0.25})
    assert [row["epoch"] for row in ledger.epochs(database, lease.trial_id)] == [1, 2]
    refused(database, study, lease)
    again = take(database, study, "another")
    assert (again.trial_id, again.token, again.crashes, again.epoch) == (lease.trial_id, lease.token + 1, 0, 2)


def test_more_trials_than_a_statement_has_room_for_are_released(database: Database) -> None:
    """An expression of SQLite has at most 1,000 levels; a worker may have more lanes."""
    create_study(database, parse(TINY.replace("trials = 6", "trials = 1100"), "tiny.toml"), "many")
    leases = take_many(database, load_study(database, "many"), 1100)
    for lease in leases[:2]:
        for epoch in (1, 2):
            report(database, lease, epoch, 0.5)
    given_back = [(lease, 1 if lease == leases[0] else 2) for lease in leases]
    assert len(ledger.release(database, given_back, "for the test")) == 1100
    assert [[row["epoch"] for row in ledger.epochs(database, lease.trial_id)] for lease in leases[:3]] == [
        [1],
        [1, 2],
        [],
    ]
    trials = load_study(database, "many").optuna_study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} == {TrialState.WAITING}
    assert [list(trial.intermediate_values) for trial in trials if trial.intermediate_values] == [[1], [1, 2]]


def test_a_configuration_belongs_to_one_trial(database: Database, study: LoadedStudy) -> None:
    first, second, third, fourth = take_many(database, study, 4)
    assert ledger.set_up(database, study.study_id, [drawn(first, "x"), drawn(second, "x"), drawn(third, "y")]) == (
        {first.trial_id, third.trial_id},
        {second.trial_id},
    )
    assert "a" not in study.optuna_study.trials[1].user_attrs
    assert ledger.set_up(database, study.study_id, [drawn(second, "z")]) == ({second.trial_id}, set())
    assert ledger.set_up(database, study.study_id, [drawn(fourth, "y", ordered=True)]) == ({fourth.trial_id}, set())
    create_study(database, parse(TINY, "tiny.toml"), "other", 100)
    other = load_study(database, "other")
    lease = take(database, other)
    assert ledger.set_up(database, other.study_id, [drawn(lease, "x")]) == ({lease.trial_id}, set())


def test_one_that_kills_its_workers_takes_no_other_trial_along(database: Database, study: LoadedStudy) -> None:
    """Nobody knows which of the trials of a worker has killed it: each has its last chance alone."""

    def ask(owner: str, seconds: float = 0.0) -> list[int]:
        taken = ledger.take(database, study.study_id, 4, owner, seconds, study.plan)
        time.sleep(0.01)
        held.update({lease.number: lease for lease in taken.leases})
        return [lease.number for lease in taken.leases]

    held: dict[int, Lease] = {}
    assert ask("first") == ask("second") == [0, 1, 2, 3]
    assert ask("third") == [0]  # the poison, alone
    assert ask("fourth", 60.0) == [1]  # and the first one fails
    assert study.optuna_study.trials[0].state == TrialState.FAIL
    assert ask("fourth", 60.0) == []
    report(database, held[1], 1, 0.5)
    assert ask("fourth", 60.0) == [4, 5, 6, 7]  # whoever holds trials takes none that has its last chance
    assert ask("fifth", 60.0) == [2]
    assert ask("sixth", 60.0) == [3]
    assert [trial.state for trial in study.optuna_study.trials[1:]] == [TrialState.RUNNING] * 7


def test_a_study_that_has_the_id_of_a_deleted_one_is_another(database: Database, study: LoadedStudy) -> None:
    """SQLite gives it to the next one."""
    optuna.delete_study(study_name="tiny", storage=database.storage)
    create_study(database, parse(TINY, "tiny.toml"), "tiny")
    with pytest.raises(StorageError, match="has been deleted"):
        take(database, study)
    assert take(database, load_study(database, "tiny")).number == 0


def test_a_deleted_study_stops_the_worker(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    ledger.set_up(database, study.study_id, [drawn(lease, "x")])
    report(database, lease, 1, 0.1)
    ledger.release(database, [(lease, 1)], "a test")  # an event
    optuna.delete_study(study_name="tiny", storage=database.storage)
    with pytest.raises(StorageError, match="has been deleted"):
        take(database, study)
    assert ledger.report(database, [Report(lease, 2, 0.1, MEASURED)], 60.0) == set()
    with database.engine.connect() as connection:
        for table in ("epochs", "leases", "control", "configurations", "events"):
            assert connection.scalar(text(f"SELECT count(*) FROM hpsearch_{table}")) == 0, table


def test_who_cannot_start_trials_does_not_wait_with_a_connection(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "TRY_SECONDS", 0.2)
    with create(postgres.new_database()) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        study = load_study(database, "tiny")
        with database.engine.begin() as other:
            locks.lock_study(other, study.study_id)
            taken = ledger.take(database, study.study_id, 1, "me", 60.0, study.plan)
            assert (taken.leases, taken.reason) == ((), "others are starting trials")
            assert database.engine.pool.checkedout() == 1  # the other one's
        assert len(ledger.take(database, study.study_id, 1, "me", 60.0, study.plan).leases) == 1


def test_a_budget_of_epochs_is_never_exceeded(database: Database, study: LoadedStudy) -> None:
    ten = plan(study, epochs=10)  # trials have three epochs: three fit
    taken = ledger.take(database, study.study_id, 8, "me", 60.0, ten)
    assert len(taken.leases) == 3
    assert taken.reason == "its budget of 10 epochs has no room for another trial"
    first, second, _ = taken.leases
    report(database, first, 1, 0.1)
    ledger.finish(database, [End(first, TrialState.PRUNED, 0.1)])  # two of its epochs become free: 9 - 2 + 3 = 10
    assert len(ledger.take(database, study.study_id, 8, "me", 60.0, ten).leases) == 1
    report(database, second, 1, 0.1)
    ledger.release(database, [(second, 1)], "a test")  # it keeps its room
    assert [lease.number for lease in ledger.take(database, study.study_id, 8, "me", 60.0, ten).leases] == [1]


def test_hours_and_a_target_end_a_study(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    assert ledger.report(database, [Report(lease, 1, 0.1, MEASURED, seconds=1800.0)], 60.0)

    def reason(**budget: float) -> str:
        taken = ledger.take(database, study.study_id, 1, "me", 60.0, plan(study, **budget))
        return "" if taken.leases else taken.reason

    assert reason(gpu_hours=0.6) == ""
    assert reason(gpu_hours=0.5) == "its 0.5 GPU-hours are used"
    assert reason(wall_clock_hours=1.0) == ""
    assert "hours of wall-clock time are over" in reason(wall_clock_hours=1e-9)
    assert reason(target=0.9) == ""
    ledger.finish(database, [End(lease, TrialState.COMPLETE, 0.91)])
    assert reason(target=0.9) == "a trial has reached the target 0.9"
    assert reason(target=0.92) == ""
