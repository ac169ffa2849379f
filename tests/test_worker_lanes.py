"""A worker with lanes: real searches on the digits, many trials at once."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from hpsearch.data.load import load
from hpsearch.events import (
    EpochDone,
    TrialEnded,
    TrialResumed,
    TrialStarted,
    WorkerWarned,
)
from hpsearch.interrupt import Interruption
from hpsearch.models.build import build_model, built_in
from hpsearch.recipe import Recipe
from hpsearch.search.asking import ask
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import leases
from hpsearch.storage.open import Database
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.fused import Fused
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program
from hpsearch.worker import run
from tests.cores import num_cores
from tests.studies import TINY
from tests.train.data import small_data_set
from tests.working import fail_once, tiny, work


@pytest.mark.parametrize("lanes", [3, 8])
def test_lanes_train_what_single_runs_train(database: Database, settings: Settings, lanes: int) -> None:
    """Pruned and replaced one by one, on shared images; each curve is that of its recipe alone, bit for bit."""
    spec = tiny(trials="trials = 20", epochs="epochs = 5")
    events = work(database, spec, replace(settings, lanes=lanes))
    trials = load_study(database, "tiny").optuna_study.trials
    assert len(trials) == 20
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    started = [event.trial for event in events if isinstance(event, TrialStarted)]
    first_end = next(index for index, event in enumerate(events) if isinstance(event, TrialEnded))
    assert sum(isinstance(event, TrialStarted) for event in events[:first_end]) == lanes
    assert started == list(range(20))
    data = place(load("digits", data_dir=None, cache_dir=settings.datasets, image_size=8), "cpu")
    recipes = [Recipe(**trial.user_attrs[RECIPE_KEY]) for trial in trials]
    assert len({recipe.stream_seed for recipe in recipes}) == 1
    assert any(recipe.stream_offset for recipe in recipes)  # those that joined others on their way
    for recipe, trial in zip(recipes, trials, strict=True):
        program = Program(recipe, build_model(recipe, data.input_shape, data.num_classes), data)
        alone = {epoch: program.run_epoch().validation_accuracy for epoch in trial.intermediate_values}
        assert alone == trial.intermediate_values, trial.number


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 2), (8, 4)])
def test_auto_is_a_lane_for_each_core(sqlite: Database, settings: Settings, cores: int, lanes: int) -> None:
    with num_cores(cores):
        events = work(sqlite, tiny(), settings)
    first_end = next(index for index, event in enumerate(events) if isinstance(event, TrialEnded))
    assert sum(isinstance(event, TrialStarted) for event in events[:first_end]) == lanes


def test_interrupted_lanes_all_go_on(sqlite: Database, settings: Settings) -> None:
    create_study(sqlite, tiny(), "tiny")
    four = replace(settings, lanes=4)
    interruption = Interruption()
    events = []
    for event in run(sqlite, "tiny", four, interruption):
        events.append(event)
        interruption.requested |= isinstance(event, EpochDone)
    given_back = {event.trial for event in events if isinstance(event, TrialEnded) and event.state == "WAITING"}
    assert len(given_back) >= 2
    events = work(sqlite, tiny(), four)
    assert {event.trial for event in events if isinstance(event, TrialResumed)} == given_back
    for trial in load_study(sqlite, "tiny").optuna_study.trials:
        assert list(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))


def test_a_lane_that_breaks_leaves_the_others_alone(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, RuntimeError("broken"))
    work(sqlite, tiny(), replace(settings, lanes=4))
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 1
    assert len(trials) == 6
    assert all(trial.state.is_finished() for trial in trials)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_out_of_memory_halves_the_lanes_and_loses_nothing(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """As on a GPU: groups are one program, which does not fit with more than two lanes."""
    train_epoch = Fused.train_epoch

    def small(program: Fused) -> Any:
        if program.num_lanes > 2:
            raise kind("CUDA error: out of memory")
        return train_epoch(program)

    monkeypatch.setattr(Fused, "train_epoch", small)
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=True))
    head, _, _ = TINY.partition("[[first]]")
    text = "\n".join(line for line in head.splitlines() if not line.startswith("momentum"))
    spec = parse(text.replace('["sgd", "adam"]', '["adam"]'), "tiny.toml")  # one graph, one program
    events = work(sqlite, spec, replace(settings, lanes=4))
    warned = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert warned == ["out of memory with 4 lanes; going on with 2"]
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert not any(trial.constraints for trial in trials)


def test_out_of_memory_halves_lanes_that_cannot_be_fused(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where some of them train and the rest find no memory left."""
    made: list[Lanes] = []
    train_block = Program.train_block

    def lanes(data: Any, constructor: Any, **_: Any) -> Lanes:
        made.append(Lanes(data, constructor, fuse=False))
        return made[0]

    def full(program: Program, *block: Any) -> None:
        if program in list(made[0]._single.values())[2:]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        train_block(program, *block)

    monkeypatch.setattr(Program, "train_block", full)
    monkeypatch.setattr("hpsearch.worker.Lanes", lanes)
    events = work(sqlite, tiny(TINY.replace('"asha"', '"none"')), replace(settings, lanes=4))
    warned = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert warned == ["out of memory with 4 lanes; going on with 2"]
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert not any(trial.constraints for trial in trials)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_trial_that_is_alone_in_its_program_is_tried_alone(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, fits: bool, fuse: bool
) -> None:
    """Of several programs it may be the one that finds no memory left; or it would find none anywhere."""
    made: list[Lanes] = []
    train_epoch, train_block = Fused.train_epoch, Program.train_block

    def lanes(data: Any, constructor: Any, **_: Any) -> Lanes:
        made.append(Lanes(data, constructor, fuse=fuse))
        return made[0]

    def crowd(batch_size: int) -> None:
        num = sum(len(group.keys) for group in made[0]._fused) + len(made[0]._single)
        if batch_size == 16 and not (fits and num <= 2):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def fused(program: Fused) -> Any:
        crowd(program.stream.batch_size)
        return train_epoch(program)

    def single(program: Program, *block: Any) -> None:  # of a network that cannot be fused
        crowd(program.recipe.batch_size)
        train_block(program, *block)

    monkeypatch.setattr(Fused, "train_epoch", fused)
    monkeypatch.setattr(Program, "train_block", single)
    monkeypatch.setattr("hpsearch.worker.Lanes", lanes)
    text = TINY.partition("[[first]]")[0].replace("[pruner]", "batch_size = [16, 64]\n[pruner]").replace("asha", "none")
    sizes = [64, 64, 16, 64, 64, 64]
    rates = [f"[[first]]\nlearning_rate = 0.0{n + 2}\nbatch_size = {size}\n" for n, size in enumerate(sizes)]
    events = work(sqlite, tiny(text + "\n".join(rates)), replace(settings, lanes=4))
    warned = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert warned == ["out of memory with 4 lanes; going on with 1"]
    trials = load_study(sqlite, "tiny").optuna_study.trials
    blamed = [trial.user_attrs[RECIPE_KEY]["batch_size"] for trial in trials if trial.constraints]
    assert blamed == ([] if fits else [16])
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == (6 if fits else 5)
    ended = [index for index, event in enumerate(events) if isinstance(event, TrialEnded) and event.state != "WAITING"]
    beside = {event.trial for event in events[ended[-4] : ended[-1]] if isinstance(event, EpochDone)}
    assert len(beside) > 1  # they train together again


def test_leases_outlast_a_round_of_several_programs(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of which takes longer than a lease."""
    train_epoch, expired = Fused.train_epoch, list[int]()

    def slow(program: Fused) -> Any:
        if program.stream.batch_size == 16:
            time.sleep(2.5)
            with sqlite.engine.connect() as connection:
                expired.append(leases.count_expired(connection, 1))
        return train_epoch(program)

    monkeypatch.setattr(Fused, "train_epoch", slow)
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=True))
    text = TINY.partition("[[first]]")[0].replace('"asha"', '"none"')
    spec = tiny(text.replace("[pruner]", "batch_size = [16, 64]\n[pruner]"), epochs="epochs = 2")
    events = work(sqlite, spec, replace(settings, lanes=6, lease_seconds=2.0))
    assert expired == [0, 0]
    assert {event.state for event in events if isinstance(event, TrialEnded)} == {"COMPLETE"}


def test_leases_outlast_suggestions_that_take_long(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the trials that train, and of those that are drawn up."""
    expired: list[int] = []

    def slow(*arguments: Any) -> Any:
        time.sleep(1.2)
        with sqlite.engine.connect() as connection:
            expired.append(leases.count_expired(connection, 1))
        return ask(*arguments)

    monkeypatch.setattr("hpsearch.search.session.ask", slow)
    work(sqlite, tiny(trials="trials = 8", epochs="epochs = 2"), replace(settings, lanes=4, lease_seconds=4.0))
    assert len(expired) >= 8
    assert set(expired) == {0}


def test_ctrl_c_does_not_wait_for_all_suggestions(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not drawn up goes back without; the next worker draws it up."""
    interruption, drawn = Interruption(), list[int]()

    def asked(view: Any, study: Any, lease: Any, *rest: Any) -> Any:
        drawn.append(lease.number)
        interruption.requested |= len(drawn) == 2
        return ask(view, study, lease, *rest)

    create_study(database, tiny(), "tiny")
    with monkeypatch.context() as patch:
        patch.setattr("hpsearch.search.session.ask", asked)
        list(run(database, "tiny", replace(settings, lanes=4), interruption))
    assert drawn == [0, 1]
    trials = load_study(database, "tiny").optuna_study.trials
    assert [(trial.state, RECIPE_KEY in trial.user_attrs) for trial in trials] == [
        (TrialState.WAITING, number < 2) for number in range(4)
    ]
    list(run(database, "tiny", replace(settings, lanes=4), Interruption()))
    trials = load_study(database, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("fuse", [True, False])
def test_augmented_images_make_room_before_lanes_are_halved(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, fuse: bool
) -> None:
    """As on a GPU, where the images of an epoch stay for all programs of a stream."""
    train_epoch, train_block, held = Fused.train_epoch, Program.train_block, list[int]()

    def crowd(data: DeviceData) -> None:
        held.append(data.augmented.num_bytes)
        if held[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def fused(program: Fused) -> Any:
        crowd(program.data)
        return train_epoch(program)

    def single(program: Program, *block: Any) -> None:  # of a network that cannot be fused
        crowd(program.data)
        train_block(program, *block)

    monkeypatch.setattr(Fused, "train_epoch", fused)
    monkeypatch.setattr(Program, "train_block", single)
    monkeypatch.setattr("hpsearch.train.stream._num_kept", lambda data: 4 * data.augmented.wanted)
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=fuse))
    events = work(sqlite, tiny(), replace(settings, lanes=4))
    assert [event.message for event in events if isinstance(event, WorkerWarned)] == []
    assert sum(map(bool, held)) == (1 if fuse else 4)  # each of the four finds no memory, and then all begin again
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_lanes_whose_epoch_raises_train_one_after_another(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may fail with a whole batch of many trials that did well with two images."""

    def failing(program: Fused) -> Any:
        raise RuntimeError("unable to find an engine")

    monkeypatch.setattr(Fused, "train_epoch", failing)
    monkeypatch.setattr("hpsearch.worker.Lanes", lambda data, constructor, **_: Lanes(data, constructor, fuse=True))
    events = work(sqlite, tiny(), replace(settings, lanes=3))
    warned = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert warned == ["model 2lp cannot be fused, its trials train one after another: unable to find an engine"]
    trials = load_study(sqlite, "tiny").optuna_study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_group_that_has_no_memory_for_one_of_its_new_trials_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were in lanes by then would train there for nobody, and once more when all join again."""
    lanes, fill = Lanes(place(small_data_set(), "cpu"), built_in("2lp"), fuse=True), Fused.fill
    recipes = [Recipe(model="2lp", epochs=2, batch_size=16, hidden_width=12, seed=seed) for seed in range(4)]

    def full(program: Fused, lane: int, *trial: Any) -> None:
        if lane == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fill(program, lane, *trial)

    def add(keys: Sequence[int]) -> None:
        for key in keys:
            lanes.add(key, recipes[key], build_model(recipes[key], (3, 16, 16), 4))

    add([0, 1])
    list(lanes.groups())
    add([2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(Fused, "fill", full)
        with pytest.raises(torch.OutOfMemoryError):
            list(lanes.groups())
    (group,) = lanes.groups()
    assert sorted(group.keys) == [0, 1, 2, 3]
    assert sorted(group.train_epoch()) == [0, 1, 2, 3]
    program = group._program  # type: ignore[attr-defined]
    assert sum(lane is not None for lane in program.lanes) == 4


def test_fused_lanes_search_like_separate_ones(
    sqlite: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker as it is on a GPU, with programs of many trials, here on a CPU: same choices, nearly same values."""
    found = []
    for name, fuse in (("separate", False), ("fused", True)):
        monkeypatch.setattr(
            "hpsearch.worker.Lanes", lambda data, constructor, own=fuse, **_: Lanes(data, constructor, fuse=own)
        )
        create_study(sqlite, tiny(trials="trials = 12"), name)
        list(run(sqlite, name, replace(settings, lanes=6, home=settings.home / name), Interruption()))
        found.append(load_study(sqlite, name).optuna_study.trials)
    separate, fused = found
    assert len(separate) == len(fused) == 12
    for one, other in zip(separate[:6], fused[:6], strict=True):  # later ones follow from values, which are rounded
        assert one.params == other.params
        assert one.intermediate_values[1] == pytest.approx(other.intermediate_values[1], abs=0.01)
    assert {trial.state for trial in fused} <= {TrialState.COMPLETE, TrialState.PRUNED}
