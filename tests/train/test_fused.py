"""Lanes: each of K trials in one program computes what it computes alone.

Tolerance: both sides compute the same sums of float32 products in another order, so one step differs by some units of
2**-24 of the largest term, and over the 15 steps of a test such differences grow with the updates they enter. Over all
combinations here losses differed by 1.3e-6 at most, gradient norms by 8e-6, parameters and moments by 6e-6 (on a CPU).
1e-4 is ten times that, and less than what a wrong momentum, decay, clipping, dropout mask or step count makes
(`test_the_tolerance_sees_small_mistakes`).
"""

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.models import MODELS
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train import OPTIMIZERS, SCHEDULES
from hpsearch.train import fused as fused_module
from hpsearch.train.device_data import place
from hpsearch.train.fused import CannotFuse, Fused
from hpsearch.train.lane_optimizers import BUFFERS, Numbers
from hpsearch.train.program import EpochResult, Program
from tests.train.data import small_data_set

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EPOCHS = 3
NUMBERS = ("training_loss", "validation_loss", "learning_rate", "gradient_norm")
SHARES = ("training_accuracy", "validation_accuracy")  # of 70 and 20 images: one that is on the edge may tip over


def recipes(model: str, optimizer: str, scheduler: str, batch_size: int) -> list[Recipe]:
    """Three trials that differ in all that is a tensor along K."""
    rate = 0.02 if optimizer == "sgd" else 0.002
    peak = {"peak_learning_rate": 3 * rate} if scheduler == "onecycle" else {}
    first = Recipe(
        model=model,
        epochs=EPOCHS,
        optimizer=optimizer,
        scheduler=scheduler,
        learning_rate=rate,
        batch_size=batch_size,
        augmentation="crop-flip",
        hidden_width=12,
        dropout=0.2,
        seed=3,
        stream_seed=7,
        **peak,
    )
    second = replace(first, learning_rate=rate / 2, momentum=0.5, weight_decay=0.01, clip_norm=0.3, dropout=0.0, seed=4)
    third = replace(first, weight_decay=0.1, clip_norm=5.0, dropout=0.5, gamma=0.7, epochs=5, seed=5)
    return [first, second, third]


def fill(fused: Fused, lane: int, recipe: Recipe, state: Any = None) -> None:
    """Put the trial into the lane with a fresh network."""
    fused.fill(lane, recipe, build_model(recipe, fused.data.input_shape, fused.data.num_classes), state)


def alone(recipe: Recipe, data: Any) -> Program:
    """The trial in a program of its own."""
    return Program(recipe, build_model(recipe, data.input_shape, data.num_classes), data)


def assert_same(lane: EpochResult, single: EpochResult) -> None:
    """Equal up to the tolerance of this file."""
    assert lane.epoch == single.epoch
    for name in NUMBERS:
        assert getattr(lane, name) == pytest.approx(getattr(single, name), rel=0.0, abs=1e-4), name
    for name in SHARES:
        assert getattr(lane, name) == pytest.approx(getattr(single, name), abs=0.06), name


def assert_same_state(lane: dict[str, Tensor | int], single: dict[str, Tensor | int]) -> None:
    assert lane.keys() == single.keys()
    for name, value in single.items():
        torch.testing.assert_close(
            torch.as_tensor(lane[name]),
            torch.as_tensor(value),
            rtol=0.0,
            atol=1e-4,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def assert_same_run(
    results: list[tuple[EpochResult, EpochResult]], lane: dict[str, Tensor | int], single: dict[str, Tensor | int]
) -> None:
    """All epochs, and the state at the end."""
    for one, other in results:
        assert_same(one, other)
    assert_same_state(lane, single)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_size", [16, 64])  # of 70 images: the last batch has 6
@pytest.mark.parametrize("scheduler", sorted(SCHEDULES))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_each_lane_equals_the_single_run(
    model: str, optimizer: str, scheduler: str, batch_size: int, device: str
) -> None:
    data = place(small_data_set(), device)
    chosen = recipes(model, optimizer, scheduler, batch_size)
    fused = Fused(chosen[0], 12, data, 4)
    singles = [alone(recipe, data) for recipe in chosen]
    for lane, recipe in enumerate(chosen):
        fill(fused, lane, recipe)
        assert_same_state(fused.take(lane), singles[lane].state())
    for _ in range(EPOCHS):
        results = fused.run_epoch()
        assert sorted(results) == [0, 1, 2]
        for lane, single in enumerate(singles):
            assert_same(results[lane], single.run_epoch())
    for lane, single in enumerate(singles):
        assert_same_state(fused.take(lane), single.state())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_trials_with_different_optimizers_share_a_program(model: str, device: str) -> None:
    data = place(small_data_set(), device)
    chosen = [recipes(model, name, "onecycle", 16)[0] for name in sorted(OPTIMIZERS)]
    fused, singles = Fused(chosen[0], 12, data, 3), [alone(recipe, data) for recipe in chosen]
    for lane, recipe in enumerate(chosen):
        fill(fused, lane, recipe)
    results = [(fused.run_epoch(), [single.run_epoch() for single in singles]) for _ in range(EPOCHS)]
    for lane, single in enumerate(singles):
        own = [(together[lane], one[lane]) for together, one in results]
        assert_same_run(own, fused.take(lane), single.state())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_padded_width_equals_true_width(model: str, device: str) -> None:
    data = place(small_data_set(), device)
    first, second, third = recipes(model, "adamw", "cosine", 16)
    chosen = [replace(first, hidden_width=10), replace(second, hidden_width=7), replace(third, hidden_width=20)]
    fused = Fused(chosen[0], 32, data, 3)
    for lane, recipe in enumerate(chosen):
        fill(fused, lane, recipe)
    singles = [alone(recipe, data) for recipe in chosen]
    for _ in range(EPOCHS):
        results = fused.run_epoch()
        for lane, single in enumerate(singles):
            assert_same(results[lane], single.run_epoch())
    for lane, single in enumerate(singles):
        assert_same_state(fused.take(lane), single.state())
    assert float(outside(fused, 1).abs().max()) == 0.0  # padded units never move


def outside(fused: Fused, lane: int) -> Tensor:
    """Every parameter and moment of a lane that is padding."""
    values = []
    for rows in (fused._rows.flat, *fused._rows.moments.tensors()):
        kept = rows[lane].clone()
        for name in fused._names:
            fused._view(rows, name)[lane][tuple(map(slice, fused._filled(lane).shapes[name]))] = 0
        values.append(rows[lane].clone())
        rows[lane] = kept
    return torch.cat(values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", ["lenet-bn", "3lp"])
def test_a_lane_filled_in_mid_flight_equals_one_started_alone(model: str, device: str) -> None:
    data = place(small_data_set(), device)
    first, second, third = recipes(model, "sgd", "onecycle", 16)
    fused = Fused(first, 12, data, 3)
    fill(fused, 0, replace(first, epochs=9))
    fill(fused, 1, second)
    fused.run_epoch()
    fused.free(1)
    fused.run_epoch()
    late = replace(third, stream_offset=2)
    fill(fused, 1, late)
    single = alone(late, data)
    for _ in range(EPOCHS):
        assert_same(fused.run_epoch()[1], single.run_epoch())
    assert_same_state(fused.take(1), single.state())
    with pytest.raises(ValueError, match="its stream is not at epoch 0"):
        fill(fused, 2, third)
    with pytest.raises(ValueError, match="not free"):
        fill(fused, 1, replace(third, stream_offset=5))


@pytest.mark.parametrize("device", DEVICES)
def test_a_trial_moves_between_lanes_programs_and_a_single_run(device: str) -> None:
    data = place(small_data_set(), device)
    first, second, third = recipes("lenet", "adam", "cosine", 16)
    whole = alone(third, data)
    one = Fused(first, 12, data, 2)
    fill(one, 1, third)
    assert_same(one.run_epoch()[1], whole.run_epoch())
    other = Fused(first, 64, data, 3)  # another program, another width
    fill(other, 0, third, one.take(1))
    assert_same(other.run_epoch()[0], whole.run_epoch())
    single = alone(third, data)
    single.restore(other.take(0))
    assert_same(single.run_epoch(), whole.run_epoch())
    one.free(1)
    fill(one, 0, third, single.state())
    assert_same(one.run_epoch()[0], whole.run_epoch())
    assert second != third


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_neighbour_that_diverges_changes_nothing(model: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    data = place(small_data_set(), device)
    first, second, third = recipes(model, "sgd", "constant", 16)
    calm, wild = Fused(first, 12, data, 3), Fused(first, 12, data, 3)
    for lane, recipe in enumerate((first, second, third)):
        fill(calm, lane, recipe)
        fill(wild, lane, replace(recipe, learning_rate=1e30) if lane == 1 else recipe)
    for _ in range(EPOCHS):
        quiet, loud = calm.run_epoch(), wild.run_epoch()
        assert loud[1].diverged
        assert math.isnan(loud[1].validation_loss)
        for lane in (0, 2):
            numbers = [{**vars(results[lane]), "images_per_second": 0.0} for results in (quiet, loud)]
            assert numbers[0] == numbers[1]  # bit for bit
    for lane in (0, 2):
        for name, value in calm.take(lane).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(wild.take(lane)[name])), name


def test_the_tolerance_sees_small_mistakes() -> None:
    data = place(small_data_set(), "cpu")
    first, *_ = recipes("3lp", "sgd", "cosine", 16)
    fused = Fused(first, 12, data, 1)
    changes: list[dict[str, Any]] = [
        {"momentum": 0.89},
        {"weight_decay": 0.02},
        {"clip_norm": 0.5},
        {"seed": 4},
        {"dropout": 0.21},
        {"learning_rate": 0.0201},
        {"stream_seed": 8},
    ]
    for change in changes:
        fill(fused, 0, first)
        single = alone(replace(first, **change), data)
        results = [(fused.run_epoch()[0], single.run_epoch()) for _ in range(EPOCHS)]
        with pytest.raises(AssertionError):
            assert_same_run(results, fused.take(0), single.state())
        fused.free(0)


class Branching(nn.Module):
    """A network that looks at its numbers, which no one can do for many trials at once."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return -logits if float(logits.sum()) > 0 else logits


class OwnDropout(nn.Module):
    """A network that draws random numbers in a way of its own."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(self.layer(images.flatten(1)), 0.5, self.training)


class Moving(OwnDropout):
    """A network that keeps a running mean as many do: in another tensor each time."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.register_buffer("centre", torch.zeros(math.prod(input_shape)))

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        self.centre = 0.9 * self.centre + 0.1 * flat.mean(0)
        return self.layer(flat - self.centre)  # type: ignore[no-any-return]


class MovingOnce(Moving):
    """A network that does so while it is validated."""

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) if self.training else super().forward(images)  # type: ignore[no-any-return]


class Tied(OwnDropout):
    """A network one of whose weights has two places."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.again = nn.Linear(math.prod(input_shape), num_classes)
        self.again.weight = self.layer.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) + self.again(images.flatten(1))  # type: ignore[no-any-return]


class ReadsRate(OwnDropout):
    """A network that looks up the rate of its dropout, as those with attention do."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.drop = nn.Dropout(0.25)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) * (1 - self.drop.p)  # type: ignore[no-any-return]


def test_a_network_may_read_the_rate_of_its_dropout() -> None:
    data = place(small_data_set(), "cpu")
    recipe = Recipe(model="own", epochs=1)
    model = ReadsRate(data.input_shape, data.num_classes)
    assert not Program(recipe, model, data).run_epoch().diverged
    assert model.drop.p == 0.25


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Branching, "data-dependent|item"),
        (OwnDropout, "random"),
        (Moving, "assigns centre in its forward pass"),
        (MovingOnce, "assigns centre in its forward pass"),
        (Tied, "again.weight are other names"),
        (ReadsRate, "item"),
    ],
)
def test_a_network_that_cannot_be_fused_says_why(network: type[nn.Module], reason: str) -> None:
    data = place(small_data_set(), "cpu")
    with pytest.raises(CannotFuse, match=reason):
        Fused(Recipe(model="own", epochs=1), None, data, 2, network)


def test_tables_agree() -> None:
    from hpsearch.train import optimizers

    for name, buffers in BUFFERS.items():
        assert buffers == getattr(optimizers, name.upper()).buffers
    assert BUFFERS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("model", ["2lp", "lenet-bn"])
def test_its_memory_is_free_as_soon_as_nobody_has_it(model: str) -> None:
    """A cycle would hold it until Python collects: no program of half the lanes would fit on a full device."""
    chosen = recipes(model, "sgd", "constant", 16)
    program = Fused(chosen[0], 12, place(small_data_set(), "cpu"), 2)
    watched = weakref.ref(program)
    gc.disable()
    try:
        del program
        assert watched() is None
    finally:
        gc.enable()


def test_validation_that_does_not_fit_takes_fewer_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = recipes("2lp", "sgd", "constant", 16)
    data = place(small_data_set(), "cpu")
    monkeypatch.setattr(fused_module, "VALIDATION_BATCH", 7)
    results, sizes = [], list[int]()
    whole = fused_module.normalise

    def scarce(images: Tensor, *others: Any) -> Tensor:
        sizes.append(len(images))
        if len(images) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(images, *others)

    for function in (whole, scarce):
        monkeypatch.setattr(fused_module, "normalise", function)
        program = Fused(first, 12, data, 1)
        fill(program, 0, first)
        results.append([program.run_epoch()[0] for _ in range(2)])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    assert sizes == [20, 7, 7, 6, 7, 7, 6]  # it is tried once
    assert data.augmented.wanted  # no images had to make room for it


def test_numbers_of_a_recipe_may_be_whole() -> None:
    numbers = Numbers.of([Recipe(model="2lp", epochs=1, weight_decay=0, clip_norm=1)], torch.device("cpu"))
    assert {numbers.penalty.dtype, numbers.decay.dtype, numbers.clip_norm.dtype} == {torch.float32}
