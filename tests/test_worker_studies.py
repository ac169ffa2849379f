"""What a worker does with studies that are deleted, locked, or not for it to train."""

import math
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import update
from torch import Tensor, nn

from hpsearch.data.load import DataSet, load
from hpsearch.errors import DataError, DownloadError, HpsearchError, TrialsFail, UsageError
from hpsearch.events import EpochDone, StudyOpened, WorkerLeft, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.storage.tables import LEASES, USER_ATTRIBUTES
from hpsearch.train.program import Program
from hpsearch.worker import Limits, run, serve
from tests.postgres import PostgresServer
from tests.studies import CANDIDATES, TINY
from tests.test_worker_trust import spec, states


def test_a_study_deleted_between_taking_and_drawing_up(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(sqlite, spec(2, 6), "tiny")
    turn = ledger.turn

    def deleted(*arguments: Any, **named: Any) -> Any:
        answer = turn(*arguments, **named)
        sqlite.storage.delete_study(sqlite.storage.get_study_id_from_name("tiny"))
        return answer

    monkeypatch.setattr("hpsearch.storage.ledger.turn", deleted)
    with pytest.raises(HpsearchError, match="tiny"):
        list(serve(sqlite, "tiny", settings, Interruption(), Limits()))


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_study_deleted_while_all_lanes_train(
    database: Database, settings: Settings, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.search.session.BEAT_SECONDS", 0.0)
    create_study(database, spec(30, 6), "tiny")
    events = run(database, "tiny", replace(settings, lanes=lanes), Interruption())
    while not isinstance(next(events), EpochDone):
        pass
    database.storage.delete_study(load_study(database, "tiny").study_id)
    left: list[object] = []
    with pytest.raises(HpsearchError, match="the study has been deleted"):
        left.extend(events)
    assert not [event for event in left if isinstance(event, WorkerWarned)]


def test_a_trial_that_nobody_can_take_is_looked_for_with_pauses(
    postgres: PostgresServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner was stopped in the middle of a transaction, which keeps the trial locked."""
    monkeypatch.setattr("hpsearch.worker.IDLE_POLL_SECONDS", 0.5)
    looked: list[float] = []
    url = postgres.new_database()
    with create(url) as database, create(url) as other:
        create_study(database, spec(1, 1), "tiny")
        study = load_study(database, "tiny")
        assert ledger.take(database, study.study_id, 1, "stopped", 0.0, study.plan).leases
        with other.engine.begin() as connection:
            connection.execute(update(LEASES).values(token=LEASES.c.token))
            interruption = Interruption()
            for event in serve(database, "tiny", settings, interruption, Limits(max_idle_seconds=3600.0)):
                looked += [time.monotonic()] if isinstance(event, StudyOpened) else []
                interruption.requested = len(looked) == 4
            assert looked[-1] - looked[0] >= 3 * 0.7 * 0.5  # a pause between two looks is that long at least
            events = list(serve(database, "tiny", settings, Interruption(), Limits(max_idle_seconds=0.0)))
        assert events[-1] == WorkerLeft("study tiny: others hold what is left of it")
        list(serve(database, "tiny", settings, Interruption(), Limits(max_idle_seconds=0.0)))
        assert states(database) == [TrialState.COMPLETE]


def test_a_trial_enqueued_with_what_the_study_does_not_allow_fails_alone(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, spec(2, 4), "tiny")
    study = load_study(sqlite, "tiny").optuna_study
    study.enqueue_trial({"optimizer": "rmsprop"})
    study.enqueue_trial({"learning_rate": -1.0})
    events = list(run(sqlite, "tiny", replace(settings, lanes=2), Interruption()))
    failed = [trial for trial in load_study(sqlite, "tiny").optuna_study.trials if trial.state == TrialState.FAIL]
    assert len(failed) == 2
    assert all("which the study does not allow" in trial.user_attrs[ledger.REASON_KEY] for trial in failed)
    assert sorted(states(sqlite)) == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2
    said = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert sorted(said) == sorted(
        f"trial {trial.number} failed: {trial.user_attrs[ledger.REASON_KEY]}" for trial in failed
    )


def test_a_worker_passes_over_a_study_that_it_cannot_train(
    sqlite: Database, settings: Settings, tmp_path: Path
) -> None:
    """Where none was named; it says so at the end, if nothing else is left to do."""
    create_study(sqlite, spec(2, 2, TINY.replace('name = "digits"', f'name = "folder:{tmp_path}/elsewhere"')), "a")
    create_study(sqlite, spec(2, 2), "tiny")
    events: list[object] = []
    with pytest.raises(UsageError, match="elsewhere"):
        events.extend(serve(sqlite, None, settings, Interruption(), Limits()))
    assert states(sqlite) == [TrialState.COMPLETE] * 2
    assert any(isinstance(event, WorkerWarned) and "study a is passed over" in event.message for event in events)


def test_a_damaged_recipe_hides_no_other_study(sqlite: Database, settings: Settings) -> None:
    """Of a trial that somebody has given back."""
    for name in ("a", "tiny"):
        create_study(sqlite, spec(3, 1), name)
    interruption = Interruption()
    for event in run(sqlite, "a", settings, interruption):
        interruption.requested |= isinstance(event, EpochDone)
    with sqlite.engine.begin() as connection:
        connection.execute(update(USER_ATTRIBUTES).where(USER_ATTRIBUTES.c.key == RECIPE_KEY).values(value_json='"x"'))
    events: list[object] = []
    with pytest.raises(UsageError, match="trains with is damaged; `hpsearch fsck a --repair`"):
        events.extend(serve(sqlite, None, settings, Interruption(), Limits(max_idle_seconds=0.0)))
    assert any(isinstance(event, WorkerWarned) and "study a is passed over" in event.message for event in events)
    assert states(sqlite) == [TrialState.COMPLETE]


class Normed(nn.Module):
    """A network that cannot train on a single image."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("given", "searched", "message"),
    [
        ("", "native_size = [32, 8]", "images of 8 x 8"),
        ("", "frozen_layers = { low = 0, high = 9 }\nfrozen_epochs = [0, 1]", "frozen_layers = 9: lenet has 5 layers"),
        ("frozen_epochs = 1", "frozen_layers = [1, 5]", "frozen_layers = 5: lenet has 5 layers"),
        ("frozen_layers = 5", "frozen_epochs = [0, 1]", "frozen_layers = 5: lenet has 5 layers"),
    ],
)
def test_what_cannot_be_built_anywhere_in_the_space_takes_no_trial(
    sqlite: Database, settings: Settings, given: str, searched: str, message: str
) -> None:
    text = TINY.partition("[[first]]")[0].replace("2lp", "lenet").replace("image_size = 8", "image_size = 32")
    text = text.replace("hidden_width = 16", given).replace("[space]", f"[space]\n{searched}")
    create_study(sqlite, spec(2, 4, text), "tiny")
    with pytest.raises(UsageError, match=message):
        list(run(sqlite, "tiny", settings, Interruption()))
    assert states(sqlite) == []


@pytest.mark.parametrize("searched", ["[{more}, {size}]", "{{ low = {size}, high = {more} }}", ""])
def test_a_batch_size_that_leaves_one_image_to_batch_normalisation_takes_no_trial(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, searched: str
) -> None:
    num = len(load("digits", data_dir=None, cache_dir=settings.datasets, image_size=8).train_labels)
    size = next(size for size in range(4, num) if num % size == 1)
    text = TINY.partition("[[first]]")[0].replace("hidden_width = 16", "" if searched else f"batch_size = {size}")
    if searched:
        text = text.replace("[pruner]", f"batch_size = {searched.format(size=size, more=size + 1)}\n[pruner]")
    create_study(sqlite, spec(1, 2, text), "tiny")
    monkeypatch.setattr("hpsearch.worker.catalogue.load", lambda *_: Normed)
    with pytest.raises(UsageError, match=f"last batch of one image, with batch_size = {size}: "):
        list(run(sqlite, "tiny", settings, Interruption()))
    assert not any(state in (TrialState.RUNNING, TrialState.FAIL) for state in states(sqlite))


def test_batch_sizes_between_the_steps_of_a_range_are_no_matter(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = len(load("digits", data_dir=None, cache_dir=settings.datasets, image_size=8).train_labels)
    size = next(size for size in range(4, num) if num % size == 1)
    searched = f"batch_size = {{ low = {size - 1}, high = {10**9 + size - 1}, step = {10**9} }}"
    text = TINY.partition("[[first]]")[0].replace("hidden_width = 16", "")
    create_study(sqlite, spec(1, 2, text.replace("[pruner]", f"{searched}\n[pruner]")), "tiny")
    monkeypatch.setattr("hpsearch.worker.catalogue.load", lambda *_: Normed)
    list(run(sqlite, "tiny", settings, Interruption()))
    assert all(state.is_finished() for state in states(sqlite))


def test_a_candidate_that_cannot_be_built_is_found_before_the_first_has_trained(
    sqlite: Database, settings: Settings
) -> None:
    text = CANDIDATES.replace("2lp", "lenet").replace("image_size = 8", "image_size = 32")
    text = text.replace("hidden_width = 16\n", "") + '[[candidate]]\nlabel = "small"\nnative_size = 8\n'
    create_study(sqlite, parse(text, "three.toml"), "three")
    with pytest.raises(UsageError, match="images of 8 x 8"):
        list(run(sqlite, "three", settings, Interruption()))
    assert states(sqlite, "three") == []


def test_ctrl_c_ends_a_download(sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    create_study(sqlite, spec(1, 1), "tiny")

    def asked(*_arguments: Any, **_named: Any) -> DataSet:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr("hpsearch.trained.load", asked)
    interruption = Interruption()
    with interruption.listening():
        (left,) = serve(sqlite, "tiny", settings, interruption, Limits())
    assert isinstance(left, WorkerLeft)
    assert left.interrupted


def test_a_study_whose_trials_all_fail_keeps_nobody_from_the_others(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ended by it would be started again by whoever looks after it, and take three more of its trials."""
    create_study(sqlite, spec(1, 9), "a")
    create_study(sqlite, spec(1, 2), "tiny")
    begin, begun = Program.begin_epoch, list[int]()

    def broken(program: Program) -> None:
        begun.append(1)
        if len(begun) <= 3:
            raise RuntimeError("broken")
        begin(program)

    monkeypatch.setattr(Program, "begin_epoch", broken)
    events: list[object] = []
    with pytest.raises(TrialsFail, match="study a: 3 trials in a row failed, the last one with: RuntimeError: broken"):
        events.extend(serve(sqlite, None, replace(settings, lanes=1), Interruption(), Limits(max_idle_seconds=0.0)))
    assert states(sqlite, "a").count(TrialState.FAIL) == 3
    assert states(sqlite, "tiny") == [TrialState.COMPLETE] * 2
    said = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert any(sentence.startswith("study a is passed over: study a: 3 trials in a row") for sentence in said)


@pytest.mark.parametrize("error", [DownloadError("no network"), DataError("no such folder")])
@pytest.mark.parametrize("patience", [0.0, 600.0])
def test_a_study_whose_data_cannot_be_had_is_tried_again(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, patience: float, error: DataError
) -> None:
    """But not at once, and others come first."""
    for name in ("a", "tiny"):
        create_study(sqlite, spec(1, 1), name)
    answers = [error]

    def fetched(*arguments: Any, **named: Any) -> DataSet:
        if answers:
            raise answers.pop()
        return load(*arguments, **named)

    monkeypatch.setattr("hpsearch.trained.load", fetched)
    monkeypatch.setattr("hpsearch.worker.DATA_SECONDS", patience)
    events: list[object] = []
    try:
        events.extend(serve(sqlite, None, settings, Interruption(), Limits(max_idle_seconds=0.0)))
    except DataError:  # nothing else is left
        assert patience
    said = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert f"study a is passed over for a while: {error}" in said
    done = [sum(state == TrialState.COMPLETE for state in states(sqlite, name)) for name in ("a", "tiny")]
    assert done == [0 if patience else 1, 1]


def test_a_paused_study_is_waited_for_no_longer_than_asked(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, spec(1, 1), "tiny")
    fleet.control(sqlite, load_study(sqlite, "tiny").study_id, budget.PAUSED)
    events = list(serve(sqlite, "tiny", settings, Interruption(), Limits(max_idle_seconds=0.0)))
    assert isinstance(events[-1], WorkerLeft)
    assert states(sqlite) != [TrialState.COMPLETE]
