"""The worker: real searches on the digits, in this process; every way in which a trial and a worker can end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import update

from hpsearch import worker
from hpsearch.errors import DataError, UsageError
from hpsearch.events import (
    EpochDone,
    Event,
    StudyOpened,
    TrialEnded,
    TrialResumed,
    TrialStarted,
    WorkerLeft,
    from_json,
    to_json,
)
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study, progress
from hpsearch.storage.tables import LEASES
from hpsearch.worker import Limits, run, serve
from tests.studies import TINY
from tests.working import curve, tiny, work


def test_a_study_runs_to_its_budget(database: Database, settings: Settings) -> None:
    events = work(database, tiny(), settings)
    assert isinstance(events[0], StudyOpened)
    study = load_study(database, "tiny")
    trials = study.optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert trials[0].params == {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    for trial in trials:
        assert trial.user_attrs[RECIPE_KEY]["learning_rate"] == trial.params["learning_rate"]
        steps = list(trial.intermediate_values)
        assert steps == list(range(1, len(steps) + 1))
        rows = ledger.epochs(database, trial._trial_id)
        assert [row["validation_accuracy"] for row in rows] == list(trial.intermediate_values.values())
        assert trial.value == trial.intermediate_values[steps[-1]]
        if trial.state == TrialState.PRUNED:
            assert trial.user_attrs[REASON_KEY] == "pruned by asha"
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.trial for event in ended] == list(range(6))
    assert ended[-1].best_value == max(t.value for t in trials if t.state == TrialState.COMPLETE)
    assert [from_json(to_json(event)) for event in events if not _has_nan(event)] == [
        event for event in events if not _has_nan(event)
    ]
    assert work(database, tiny(), settings)[1:] == []  # nothing left


def test_one_worker_repeats_a_study_exactly(tmp_path: Path, settings: Settings) -> None:
    found = []
    for name in ("a", "b"):
        with create(f"sqlite:///{tmp_path / name}.db") as database:
            work(database, tiny(), settings)
            trials = load_study(database, "tiny").optuna_study.trials
            found.append([(trial.params, trial.intermediate_values, trial.state) for trial in trials])
    assert found[0] == found[1]


def test_seeds_are_trials_of_one_recipe(sqlite: Database, settings: Settings) -> None:
    head = TINY.split("[space]")[0]
    spec = parse(f"seeds = [3, 5, 8]\n{head}learning_rate = 0.05\n", "seeds.toml")
    work(sqlite, spec, settings)
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert [trial.user_attrs[RECIPE_KEY]["seed"] for trial in trials] == [3, 5, 8]
    assert len({trial.user_attrs[RECIPE_KEY]["stream_seed"] for trial in trials}) == 3
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({tuple(trial.intermediate_values.values()) for trial in trials}) == 3


def test_an_interrupted_trial_goes_on_where_it_was(database: Database, settings: Settings) -> None:
    create_study(database, tiny(), "tiny")
    interruption = Interruption()
    events = []
    for event in run(database, "tiny", settings, interruption):
        events.append(event)
        if isinstance(event, EpochDone):
            interruption.requested = True  # as the signal handler does between two steps of training
    assert (events[-1].state, events[-1].epoch) == ("WAITING", 1)
    study = load_study(database, "tiny")
    now = progress(database, study)
    assert (now.finished, now.running, now.waiting) == (0, 0, 1)
    first_epoch = study.optuna_study.trials[0].intermediate_values[1]
    events = work(database, tiny(), settings)
    assert TrialResumed(0, 1, 3) in events
    trials = study.optuna_study.trials
    assert len(trials) == 6
    assert trials[0].params == {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    assert trials[0].intermediate_values[1] == first_epoch
    assert list(trials[0].intermediate_values) == list(range(1, len(trials[0].intermediate_values) + 1))


def test_a_reader_who_goes_away_loses_nothing(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(), "tiny")
    events = run(sqlite, "tiny", settings, Interruption())
    while not isinstance(next(events), EpochDone):
        pass
    events.close()  # type: ignore[attr-defined]
    assert progress(sqlite, load_study(sqlite, "tiny")).waiting == 1


def test_an_abandoned_trial_is_adopted_and_the_old_owner_drops_it(database: Database, settings: Settings) -> None:
    undisturbed = curve(settings)
    create_study(database, tiny(), "tiny")
    slow = run(database, "tiny", replace(settings, lease_seconds=0.0, checkpoint_seconds=0.0), Interruption())
    while not (isinstance(event := next(slow), EpochDone) and event.epoch == 2):
        pass
    with database.engine.begin() as connection:  # the owner hangs for longer than its lease
        connection.execute(update(LEASES).values(expires=0.0))
    assert progress(database, load_study(database, "tiny")).abandoned == 1
    events = work(database, tiny(), replace(settings, checkpoint_seconds=0.0), max_trials_here=1)
    assert any(isinstance(event, TrialResumed) for event in events)
    assert next(event.state for event in slow if isinstance(event, TrialEnded)) == "LOST"
    list(slow)  # type: ignore[call-overload]
    trials = load_study(database, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert trials[0].intermediate_values == undisturbed


def test_a_trial_ended_by_somebody_else_is_left_alone(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(), "tiny")
    study = load_study(sqlite, "tiny").optuna_study
    for event in run(sqlite, "tiny", settings, Interruption(), 1):
        if isinstance(event, EpochDone) and event.epoch == 1:
            study.tell(event.trial, 0.125)
    assert study.trials[0].value == 0.125
    assert list(study.trials[0].intermediate_values) == [1]


def test_serve_takes_every_study_in_turn(sqlite: Database, settings: Settings) -> None:
    for name in ("first", "second"):
        create_study(sqlite, tiny(trials="trials = 2"), name)
    events = list(serve(sqlite, None, settings, Interruption(), Limits()))
    assert [event.study for event in events if isinstance(event, StudyOpened)] == ["first", "second"]
    assert events[-1] == WorkerLeft("no trials left to start")
    assert sum(isinstance(event, TrialStarted) for event in events) == 4
    assert list(serve(sqlite, "first", settings, Interruption(), Limits())) == [
        WorkerLeft("study first: all of its 2 trials have been started")
    ]


def test_serve_stops_at_max_trials(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(), "tiny")
    events = list(serve(sqlite, "tiny", settings, Interruption(), Limits(max_trials=2)))
    assert sum(isinstance(event, TrialEnded) for event in events) == 2
    assert events[-1] == WorkerLeft("2 trials done, as asked")


def test_what_cannot_be_used_takes_no_trial(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    text = tiny().to_json()
    no_data = text.replace('"digits"', '"folder:/nowhere"')
    no_hyperparameter = text.replace('"2lp"', '"lenet"').replace('"hidden_width": 16', '"dropout": 0.5')
    for name, changed, error in (("a", no_data, DataError), ("b", no_hyperparameter, UsageError)):
        create_study(sqlite, StudySpec.from_json(changed), name)
        with pytest.raises(error):
            list(run(sqlite, name, settings, Interruption()))
        now = progress(sqlite, load_study(sqlite, name))
        assert (now.finished, now.running) == (0, 0)


def test_devices() -> None:
    assert worker.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="this machine has cpu"):
        worker.choose_device("cuda:99")
    with pytest.raises(UsageError, match="tpu"):
        worker.choose_device("tpu")


def _has_nan(event: Any) -> bool:
    return any(value != value for value in vars(event).values())


def test_optuna_itself_reads_the_study(database: Database, settings: Settings) -> None:
    work(database, tiny(), settings)
    study = optuna.load_study(study_name="tiny", storage=database.storage)
    assert study.best_value == max(trial.value for trial in study.trials if trial.state == TrialState.COMPLETE)


def test_pause_resume_and_stop_reach_a_worker_within_two_epochs(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.search.session.BEAT_SECONDS", 0.0)
    monkeypatch.setattr("hpsearch.worker.IDLE_POLL_SECONDS", 0.01)
    create_study(database, tiny(epochs="epochs = 4"), "tiny")
    study = load_study(database, "tiny")
    seen: list[str] = []

    def acknowledged(_seconds: float) -> None:
        """In place of a worker's sleep: what the table of workers says, and then the study goes on."""
        seen.extend(worker.state for worker in fleet.workers(database, study.study_id))
        fleet.control(database, study.study_id, budget.RUNNING)

    monkeypatch.setattr("hpsearch.worker.time.sleep", acknowledged)
    events = []
    for event in serve(database, "tiny", settings, Interruption(), Limits()):
        events.append(event)
        if isinstance(event, EpochDone) and (event.trial, event.epoch) == (0, 1):
            fleet.control(database, study.study_id, budget.PAUSED)
        if isinstance(event, EpochDone) and (event.trial, event.epoch) == (2, 1):
            fleet.control(database, study.study_id, budget.STOPPED)
    epochs = [(event.trial, event.epoch) for event in events if isinstance(event, EpochDone)]
    assert epochs[:4] == [(0, 1), (0, 2), (0, 3), (0, 4)]  # nothing lost
    resumed = next(event for event in events if isinstance(event, TrialResumed))
    assert resumed in (TrialResumed(0, 2, 4), TrialResumed(0, 3, 4))  # epoch 3 may train while 2 is recorded
    assert seen == ["paused"]
    assert events[-1] == WorkerLeft("study tiny: it is stopped")
    now = progress(database, study)
    assert (now.state, now.running) == (budget.STOPPED, 0)
    assert list(serve(database, "tiny", settings, Interruption(), Limits())) == [
        WorkerLeft("study tiny: it is stopped")
    ]
    assert fleet.workers(database, study.study_id) == []
    fleet.control(database, study.study_id, budget.RUNNING)
    list(serve(database, "tiny", settings, Interruption(), Limits()))
    trials = study.optuna_study.trials
    assert len(trials) == 6
    assert all(trial.state.is_finished() for trial in trials)


def test_a_worker_waits_for_trials_of_a_dead_one(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(trials="trials = 2"), "tiny")
    study = load_study(sqlite, "tiny")
    dead = ledger.take(sqlite, study.study_id, 1, "dead", 3600.0, study.plan)
    assert len(dead.leases) == 1
    events: list[Event] = []
    for event in serve(sqlite, "tiny", settings, Interruption(), Limits()):
        events.append(event)
        if isinstance(event, TrialEnded):  # from here on it has two seconds, however slow this machine is
            ledger.prepare(sqlite, [(lease, {}) for lease in dead.leases], 2.0)
    assert [event.trial for event in events if isinstance(event, TrialEnded)] == [1, 0]
    assert events[-1] == WorkerLeft("study tiny: all of its 2 trials have been started")


def test_an_extended_study_goes_on(sqlite: Database, settings: Settings) -> None:
    work(sqlite, tiny(trials="trials = 2"), settings)
    study = load_study(sqlite, "tiny")
    assert progress(sqlite, study).done
    assert fleet.extend(sqlite, study.study_id, 3) == 5
    work(sqlite, tiny(), settings)
    assert len(study.optuna_study.trials) == 5


def test_a_network_that_is_frozen_as_a_whole(database: Database, settings: Settings) -> None:
    frozen = "epochs = 3\nfrozen_epochs = 1"
    with pytest.raises(UsageError, match="frozen_layers = 9: 2lp has 2 layers, and one must train"):
        work(database, tiny(epochs=f"{frozen}\nfrozen_layers = 9"), settings)
    assert not load_study(database, "tiny").optuna_study.get_trials(states=(TrialState.RUNNING,))
    space = "frozen_layers = [0, 2]\nlearning_rate = { low = 1e-3, high = 1e-1, log = true }"
    create_study(database, tiny(epochs=frozen, learning_rate=space), "some")
    with pytest.raises(UsageError, match="frozen_layers = 2: 2lp has 2 layers, and one must train"):
        list(run(database, "some", settings, Interruption()))
    assert not load_study(database, "some").optuna_study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL))
