"""Trials side by side in threads: each trains as it does alone on as many cores, whatever the others do."""

import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models import MODELS
from hpsearch.models.build import Constructor, build_model, built_in
from hpsearch.recipe import Recipe
from hpsearch.train.device_data import place
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program
from hpsearch.train.side_by_side import SideBySide
from tests.cores import num_cores
from tests.train.data import small_data_set
from tests.train.test_program import numbers

DATA = place(small_data_set(), "cpu")
EPOCHS = 2


@pytest.fixture(autouse=True)
def _two_cores() -> Iterator[None]:
    with num_cores(2):
        yield


class Drawing(nn.Module):
    """A network that draws from the random state of the process, as one may that says nothing about it."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(self.layer(images.flatten(1)), 0.5, self.training)


class Broken(Drawing):
    """A network that cannot train, in a thread."""

    own_randomness = False

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("broken")
        return super().forward(images)


def recipe(model: str, number: int, **changes: Any) -> Recipe:
    fields = {"batch_size": 16, "augmentation": "crop-flip", "dropout": 0.2 if model in MODELS else None}
    return Recipe(model=model, epochs=EPOCHS, learning_rate=0.01 * (1 + number), seed=number, **{**fields, **changes})


def program(one: Recipe, constructor: Constructor | None = None) -> Program:
    return Program(one, build_model(one, DATA.input_shape, DATA.num_classes, constructor), DATA)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_each_trains_as_alone(num_threads: int, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every architecture, streams of their own, other batches, and networks that draw: bit for bit."""
    if wide:
        monkeypatch.setattr("hpsearch.models.layers.WIDE", 1)
    recipes = [recipe(model, number) for number, model in enumerate(sorted(MODELS))]
    recipes += [
        recipe("2lp", 5, batch_size=7),
        recipe("2lp", 6, augmentation="paper"),
        recipe("2lp", 7, stream_seed=3),
        recipe("2lp", 8, stream_offset=1),
        recipe("2lp", 9, clip_norm=0.1, weight_decay=0.01),
        recipe("2lp", 10, optimizer="adam"),
        recipe("2lp", 13, batch_size=8, clip_norm=0.1),  # on the same blocks of images
    ]
    pairs = [(program(one), program(one)) for one in recipes]
    for number in (11, 12):
        own = recipe("own", number)
        pairs.append((program(own, Drawing), program(own, Drawing)))
    states: dict[int, Any] = {}
    together = SideBySide(dict(enumerate(both for both, _ in pairs)), states, num_threads)
    for _ in range(EPOCHS):
        results = together.train_epoch()
        together.keep_epoch()
        assert list(results) == list(range(len(pairs)))
        for key, (_, alone) in enumerate(pairs):
            result = results[key]
            assert not isinstance(result, Exception)
            with num_cores(2 if alone.draws else max(1, 2 // num_threads)):
                assert numbers(result) == numbers(alone.run_epoch())
            for name, tensor in alone.state().items():
                assert torch.equal(torch.as_tensor(states[key][name]), torch.as_tensor(tensor)), (key, name)


def test_one_that_breaks_leaves_the_others_alone() -> None:
    programs = {0: program(recipe("2lp", 0)), 1: program(recipe("own", 1), Broken), 2: program(recipe("2lp", 2))}
    alone = program(recipe("2lp", 2))
    states: dict[int, Any] = {}
    together = SideBySide(programs, states, 2)
    results = together.train_epoch()
    together.keep_epoch()
    assert isinstance(results[1], RuntimeError)
    assert states.keys() == {0, 2}
    assert not isinstance(results[2], Exception)
    with num_cores(1):
        assert numbers(results[2]) == numbers(alone.run_epoch())


class Stubborn(Broken):
    """A network that does not let itself be put into training mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        raise RuntimeError("broken")


class Writing(Drawing):
    """A network that changes its images in place."""

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        return self.layer(images.flatten(1))


class Unready(Drawing):
    """A network that no program can be made of."""

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("broken")


@pytest.mark.parametrize("kind", [Stubborn, Unready])
def test_one_that_cannot_begin_leaves_the_others_alone(kind: type[nn.Module]) -> None:
    lanes = Lanes(DATA, kind, fuse=False, num_threads=2)
    own, other = recipe("own", 0), recipe("2lp", 1)
    lanes.add(0, own, kind(DATA.input_shape, DATA.num_classes))
    lanes.add(1, other, build_model(other, DATA.input_shape, DATA.num_classes))
    results = {key: result for group in lanes.groups() for key, result in group.train_epoch().items()}
    assert isinstance(results[0], RuntimeError)
    assert not isinstance(results[1], Exception)
    lanes.drop(0)
    assert [sorted(group.keys) for group in lanes.groups()] == [[1]]


def test_a_network_that_writes_to_its_images_is_not_felt_by_others() -> None:
    together = SideBySide({0: program(recipe("own", 0), Writing), 1: program(recipe("own", 1), Writing)}, {}, 1)
    results = together.train_epoch()
    for key in (0, 1):
        result = results[key]
        assert not isinstance(result, Exception)
        assert numbers(result) == numbers(program(recipe("own", key), Writing).run_epoch())


def test_a_lane_that_is_left_alone_keeps_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a trial's rounding would depend on what else was in the lanes."""
    seen: list[int] = []
    train_block = Program.train_block

    def watched(self: Program, *block: Any) -> None:
        seen.append(torch.get_num_threads())
        train_block(self, *block)

    monkeypatch.setattr(Program, "train_block", watched)
    lanes = Lanes(DATA, built_in("2lp"), fuse=False, num_threads=2)
    one = recipe("2lp", 0)
    lanes.add(0, one, build_model(one, DATA.input_shape, DATA.num_classes))
    for group in lanes.groups():
        group.train_epoch()
    assert set(seen) == {1}


def test_ctrl_c_ends_the_others_too_where_one_trains_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    interruption, steps = Interruption(), list[int]()

    def asking(self: Program, *_: Any) -> None:
        steps.append(self.recipe.seed)
        signal.raise_signal(signal.SIGINT)

    together = SideBySide({key: program(recipe("2lp", key)) for key in range(3)}, {}, 1)
    monkeypatch.setattr(Program, "_step", asking)

    def run() -> None:
        with interruption.listening(), interruption.stoppable():
            together.train_epoch()

    with pytest.raises(Interrupted):
        run()
    assert steps == [0]


class Double(Drawing):
    """A network whose outputs have more digits than it was asked for."""

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).double()  # type: ignore[no-any-return]


def test_a_network_may_compute_in_double_precision() -> None:
    result = program(recipe("own", 0), Double).run_epoch()
    assert not result.diverged
    assert 0 <= result.training_accuracy <= 1


def test_ctrl_c_leaves_no_thread_and_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a trial that was cut short is that after its last whole epoch."""
    states: dict[int, Any] = {}
    programs = {key: program(recipe("2lp", key)) for key in range(3)}
    together = SideBySide(programs, states, 2)
    together.train_epoch()
    together.keep_epoch()
    before = {
        key: {name: torch.as_tensor(value).clone() for name, value in state.items()} for key, state in states.items()
    }
    interruption, num_threads = Interruption(), threading.active_count()
    step = Program._step
    asked = threading.Event()

    def asking(self: Program, *arguments: Any) -> None:
        if not asked.is_set():
            asked.set()
            signal.raise_signal(signal.SIGINT)
        step(self, *arguments)

    def run() -> None:
        with interruption.listening(), interruption.stoppable():
            together.train_epoch()

    monkeypatch.setattr(Program, "_step", asking)
    with pytest.raises(Interrupted):
        run()
    assert asked.is_set()
    assert threading.active_count() == num_threads
    for key, state in states.items():
        assert state["epoch"] == 1
        for name, value in before[key].items():
            assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value))
