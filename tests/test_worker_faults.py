"""What goes wrong under a worker: trials that fail, devices, checkpoints, disks."""

import errno
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import update

from hpsearch.artifacts import digest
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.events import (
    EpochDone,
    Event,
    TrialEnded,
    TrialStarted,
    WorkerWarned,
)
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import ledger
from hpsearch.storage.ledger import REASON_KEY, TRACEBACK_KEY
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.train.checkpoint import from_bytes, to_bytes
from hpsearch.train.program import Program
from hpsearch.worker import run
from tests.studies import TINY
from tests.working import curve, fail_once, tiny, work


def test_a_diverged_trial_ends_with_that_reason_and_the_worker_goes_on(sqlite: Database, settings: Settings) -> None:
    text = TINY.split("[[first]]")[0].replace("low = 1e-3, high = 1e-1, log = true", "choices = [1e30, 0.01]")
    spec = parse(text, "tiny.toml")
    work(sqlite, spec, settings)
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    diverged = [trial for trial in trials if "diverged" in trial.user_attrs.get(REASON_KEY, "")]
    assert diverged
    for trial in diverged:
        assert trial.params["learning_rate"] == 1e30
        assert trial.state == TrialState.PRUNED
        assert trial.value is None
    assert any(trial.state == TrialState.COMPLETE for trial in trials)


def test_an_exception_fails_the_trial_and_keeps_its_traceback(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, RuntimeError("no way\nto go on"))
    work(sqlite, tiny(), settings)
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert trials[0].state == TrialState.FAIL
    assert trials[0].user_attrs[REASON_KEY] == "RuntimeError: no way to go on"
    assert "sometimes" in trials[0].user_attrs[TRACEBACK_KEY]
    assert all(trial.state != TrialState.FAIL for trial in trials[1:])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough")],
)
def test_a_trial_that_does_not_fit_into_memory_is_infeasible(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_once(monkeypatch, error)
    work(sqlite, tiny(), settings)
    study = load_study(sqlite, "tiny")
    first, *others = study.optuna_study.trials
    assert (first.state, first.value) == (TrialState.PRUNED, None)
    assert first.constraints == {"memory": 1.0}  # what TPE takes as infeasible
    assert first.user_attrs[REASON_KEY] == "out of memory with batch_size 64 and hidden_width 16"
    assert len(others) == 5
    assert all(not trial.constraints for trial in others)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_is_full_or_broken_from_the_beginning_is_not_the_networks_fault(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A study that cannot be used would be passed over for good."""

    def failing(*_: Any) -> None:
        raise error("CUDA error: somebody else uses it")

    monkeypatch.setattr("hpsearch.models.perceptron.TwoLayerPerceptron.forward", failing)
    with pytest.raises(HpsearchError, match=r"the device cpu cannot be used: CUDA error: somebody") as caught:
        work(sqlite, tiny(), settings)
    assert not isinstance(caught.value, UsageError)
    assert {trial.state for trial in load_study(sqlite, "tiny").optuna_study.trials} == {TrialState.WAITING}


def test_a_broken_device_ends_the_worker_and_not_the_trial(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(HpsearchError, match=r"the device failed: CUDA error"):
        work(sqlite, tiny(), settings)
    assert load_study(sqlite, "tiny").optuna_study.trials[0].state == TrialState.RUNNING  # its lease runs out
    with sqlite.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0))
    work(sqlite, tiny(), settings)
    assert len(load_study(sqlite, "tiny").optuna_study.trials) == 6


def test_three_exceptions_in_a_row_end_the_worker(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(_program: Program, *_block: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Program, "train_block", always)
    with pytest.raises(HpsearchError, match=r"3 trials in a row failed.*RuntimeError: broken"):
        work(sqlite, tiny(), settings)
    assert len(load_study(sqlite, "tiny").optuna_study.trials) == 3


def test_a_trial_that_kills_three_workers_fails(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(), "tiny")
    study = load_study(sqlite, "tiny")
    for owner in ("a", "b", "c"):
        assert len(ledger.take(sqlite, study.study_id, 1, owner, 0.0, study.plan).leases) == 1
        assert study.optuna_study.trials[0].number == 0
        time.sleep(0.01)
    events = work(sqlite, tiny(), settings, max_trials_here=1)
    trials = study.optuna_study.trials
    assert trials[0].state == TrialState.FAIL
    assert "3 workers in a row vanished" in trials[0].user_attrs[REASON_KEY]
    assert [event.trial for event in events if isinstance(event, TrialStarted)] == [1]


def after_two_epochs(database: Database, settings: Settings) -> Iterator[Event]:
    """The events of a worker in a new study, read until its first trial has two epochs."""
    create_study(database, tiny(), "tiny")
    events = run(database, "tiny", settings, Interruption())
    while not (isinstance(event := next(events), EpochDone) and event.epoch == 2):
        pass
    return events


@pytest.mark.parametrize("damage", ["cut off", "altered", "gone", "both"])
def test_a_damaged_checkpoint_falls_back(sqlite: Database, settings: Settings, damage: str) -> None:
    undisturbed = curve(settings)
    often = replace(settings, checkpoint_seconds=0.0)
    events = after_two_epochs(sqlite, often)
    with sqlite.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0, token=7))  # its owner can write no more
    events.close()  # type: ignore[attr-defined]
    newest, *_ = files = sorted(settings.home.glob("checkpoints/*/*.safetensors"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    for path in files if damage == "both" else files[:1]:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(content[:-9] if damage == "cut off" else content)
    work(sqlite, tiny(), often, max_trials_here=1)
    assert load_study(sqlite, "tiny").optuna_study.trials[0].intermediate_values == undisturbed


def test_a_checkpoint_of_another_network_is_not_gone_on_from(sqlite: Database, settings: Settings) -> None:
    undisturbed = curve(settings)
    often = replace(settings, checkpoint_seconds=0.0)
    events = after_two_epochs(sqlite, often)
    events.close()  # type: ignore[attr-defined]
    for path in settings.home.glob("checkpoints/*/*.safetensors"):
        state = from_bytes(path.read_bytes())
        content = to_bytes({name.replace("model.output", "model.head"): value for name, value in state.items()})
        path.with_name(f"{path.name.partition('-')[0]}-{digest(content)}.safetensors").write_bytes(content)
        path.unlink()
    told = work(sqlite, tiny(), often, max_trials_here=1)
    (warning,) = (event.message for event in told if isinstance(event, WorkerWarned))
    assert warning.startswith("trial 0 begins again, without its checkpoints: they are of another network")
    assert "head.bias" in warning
    assert load_study(sqlite, "tiny").optuna_study.trials[0].intermediate_values == undisturbed


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hpsearch.artifacts.os.fsync", full)
    events = work(sqlite, tiny(), replace(settings, checkpoint_seconds=0.0))
    assert any(isinstance(event, WorkerWarned) and "No space left" in event.message for event in events)
    assert len([event for event in events if isinstance(event, TrialEnded)]) == 6
    assert list(settings.home.glob("checkpoints/*/*")) == []


def test_a_result_counts_without_its_pictures(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lanes have left no memory for one more network."""

    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hpsearch.trial.predictions", no_room)
    work(sqlite, tiny(), settings)
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
