"""Precisions: float32 is what it was, TF32 is put back after a step, bfloat16 is the same alone and in a lane.

Tolerance: under bfloat16 every factor of a product is rounded to 8 bits, a relative error of 2**-9. A lane rounds at
other places than a single run, as a bias is added before the sum is rounded or after it, so both differ from float32 by
so much, and from one another. Logits here are of order 1: losses, means of their differences, get 2**-7, four of those
errors. A step of SGD passes it on times the rate. Adam divides by the root of the square, which turns the sign of a
gradient near 0 into a whole step: two rates for each step. Three steps, one an epoch, keep the errors from growing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpsearch.artifacts import key_of, trial_key
from hpsearch.data.load import load
from hpsearch.models.build import build_model
from hpsearch.models.layers import WideLinear
from hpsearch.recipe import RULES, Recipe
from hpsearch.train import fused, metrics, program
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.fused import Fused
from hpsearch.train.lanes import Lanes
from hpsearch.train.plan import Graph
from hpsearch.train.precision import autocast, multiplying
from hpsearch.train.program import Program, State
from tests.train.data import small_data_set
from tests.train.test_fused import alone, fill, recipes

DATA = place(small_data_set(), "cpu")
EPOCHS, BATCH = 3, 70  # one step an epoch
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def chosen(model: str, optimizer: str, precision: str) -> list[Recipe]:
    """Three trials that differ in all that is a tensor along K."""
    return [replace(recipe, precision=precision) for recipe in recipes(model, optimizer, "constant", BATCH)]


def numbers(result: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "images_per_second"}


def distance(one: State, other: State) -> float:
    """The largest difference between parameters."""
    names = [name for name in one if name.startswith("model.")]
    return max(float((torch.as_tensor(one[name]) - torch.as_tensor(other[name])).abs().max()) for name in names)


def compared(laned: list[Recipe], single: list[Recipe]) -> tuple[float, float]:
    """Lanes against single runs: the largest difference of losses, and of parameters at the end."""
    lanes, programs = Fused(laned[0], 12, DATA, 4), [alone(recipe, DATA) for recipe in single]
    for lane, recipe in enumerate(laned):
        fill(lanes, lane, recipe)
    losses = []
    for _ in range(EPOCHS):
        results = lanes.run_epoch()
        for lane, one in enumerate(programs):
            found, expected = results[lane], one.run_epoch()
            losses.append(abs(found.training_loss - expected.training_loss))
            losses.append(abs(found.validation_loss - expected.validation_loss))
    return max(losses), max(distance(lanes.take(lane), one.state()) for lane, one in enumerate(programs))


LOSS = 2.0**-7
PARAMETERS = {"sgd": 1e-3, "adam": 2 * 0.002 * EPOCHS}


@pytest.mark.parametrize(
    ("model", "optimizer"), [("2lp", "sgd"), ("2lp", "adam"), ("lenet", "sgd"), ("lenet", "adam"), ("lenet-bn", "sgd")]
)
def test_a_bfloat16_lane_equals_the_single_run(model: str, optimizer: str) -> None:
    trials = chosen(model, optimizer, "bfloat16")
    loss, parameters = compared(trials, trials)
    assert loss < LOSS
    assert parameters < PARAMETERS[optimizer]


@pytest.mark.parametrize(
    "change", [{"momentum": 0.5}, {"learning_rate": 0.01}, {"seed": 4}, {"stream_seed": 8}, {"clip_norm": 0.5}]
)
def test_the_tolerance_sees_mistakes(change: dict[str, Any]) -> None:
    trials = chosen("lenet", "sgd", "bfloat16")
    loss, parameters = compared(trials, [replace(recipe, **change) for recipe in trials])
    assert loss > LOSS
    assert parameters > PARAMETERS["sgd"]


@pytest.mark.parametrize("model", ["lenet-bn", "3lp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_bfloat16_run_is_bit_identical(model: str, optimizer: str) -> None:
    recipe = replace(chosen(model, optimizer, "bfloat16")[0], batch_size=16)
    straight, resumed = alone(recipe, DATA), alone(recipe, DATA)
    straight.run_epoch()
    resumed.restore(straight.state())
    assert numbers(resumed.run_epoch()) == numbers(straight.run_epoch())
    assert_identical(resumed.state(), straight.state())


def test_a_resumed_bfloat16_lane_is_bit_identical() -> None:
    recipe = chosen("lenet-bn", "adamw", "bfloat16")[0]
    straight, resumed = Fused(recipe, 12, DATA, 2), Fused(recipe, 12, DATA, 2)
    fill(straight, 0, recipe)
    straight.run_epoch()
    fill(resumed, 0, recipe, straight.take(0))
    assert numbers(resumed.run_epoch()[0]) == numbers(straight.run_epoch()[0])
    assert_identical(resumed.take(0), straight.take(0))


def assert_identical(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])) for name, value in one.items())


class Watching(nn.Module):
    """A small network with a wide layer that notes the type of its outputs, and who multiplies how."""

    seen: list[tuple[bool, torch.dtype, str]] = []  # noqa: RUF012 -- one list, whatever torch copies
    multiplies = "?"

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.wide, self.output = WideLinear(math.prod(input_shape), 8), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        product = self.wide(images.flatten(1)).relu()
        logits: Tensor = self.output(product)
        Watching.seen.append((self.training, (product @ product.T).dtype, Watching.multiplies))
        return logits


@contextmanager
def _noted(precision: str, device: torch.device) -> Iterator[None]:
    before, Watching.multiplies = Watching.multiplies, precision
    yield
    Watching.multiplies = before


@pytest.mark.parametrize("precision", RULES["precision"].among)
@pytest.mark.parametrize("laned", [False, True])
def test_steps_have_the_precision_and_validation_is_float32(
    precision: str, laned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (program, fused, metrics):
        monkeypatch.setattr(module, "multiplying", _noted)
    recipe = Recipe("watching", 1, precision=precision)
    network = build_model(recipe, DATA.input_shape, DATA.num_classes, Watching)
    if laned:
        lanes = Fused(recipe, None, DATA, 1, Watching)
        lanes.fill(0, recipe, network)
    single = Program(recipe, network, DATA)
    Watching.seen.clear()
    if laned:
        lanes.run_epoch()
        state: State = lanes.take(0)
    else:
        single.run_epoch()
        state = single.state()
    step = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {seen for seen in Watching.seen if seen[0]} == {(True, step, precision)}
    assert {seen for seen in Watching.seen if not seen[0]} == {(False, torch.float32, "float32")}
    assert {torch.as_tensor(value).dtype for name, value in state.items() if name != "epoch"} == {torch.float32}
    assert Watching.multiplies == "?"


def test_pictures_of_a_network_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "multiplying", _noted)
    Watching.seen.clear()
    metrics.predictions(Watching(DATA.input_shape, DATA.num_classes), DATA)
    assert Watching.seen == [(False, torch.float32, "float32")]


def test_factored_gradients_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of the factors is float32, where autograd's is rounded to bfloat16."""
    recipe = chosen("3lp", "sgd", "bfloat16")[0]
    plain = alone(recipe, DATA)
    monkeypatch.setattr("hpsearch.models.layers.WIDE", 1)
    factored = alone(recipe, DATA)
    for _ in range(EPOCHS):
        assert factored.run_epoch().training_loss == pytest.approx(plain.run_epoch().training_loss, abs=LOSS)
    assert distance(factored.state(), plain.state()) < PARAMETERS["sgd"]
    assert distance(factored.state(), alone(recipe, DATA).state()) > 5 * PARAMETERS["sgd"]  # it has moved


def test_tf32_on_a_cpu_is_float32_and_bfloat16_is_not() -> None:
    trained = {precision: alone(chosen("lenet", "sgd", precision)[0], DATA) for precision in RULES["precision"].among}
    results = {precision: numbers(one.run_epoch()) for precision, one in trained.items()}
    assert results["tf32"] == results["float32"]
    assert distance(trained["tf32"].state(), trained["float32"].state()) == 0.0
    assert 0.0 < distance(trained["bfloat16"].state(), trained["float32"].state()) < PARAMETERS["sgd"]


# The process's settings


def settings() -> list[str]:
    backends: Any = torch.backends
    return [one.fp32_precision for one in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]


def test_the_settings_of_a_gpu_are_put_back() -> None:
    before = settings()
    with multiplying("tf32", GPU):
        assert settings() == ["tf32"] * 3
        with multiplying("float32", GPU):
            assert settings() == ["ieee"] * 3
        with multiplying("bfloat16", GPU):
            assert settings() == ["ieee"] * 3
        assert settings() == ["tf32"] * 3
    with pytest.raises(RuntimeError, match="broken"), multiplying("tf32", GPU):
        raise RuntimeError("broken")
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32  # torch's older names for the settings can be read again
    with multiplying("tf32", CPU):
        assert settings() == before


def test_autocast_is_for_bfloat16_alone() -> None:
    for precision in RULES["precision"].among:
        with autocast(precision, CPU):
            assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_as_the_precision_says() -> None:
    factors = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(GPU)
    exact = (factors[0].double() @ factors[1].double()).float()
    errors = {}
    for precision in ("float32", "tf32"):
        with multiplying(precision, GPU):
            errors[precision] = float((factors[0] @ factors[1] - exact).abs().max())
    assert errors["tf32"] > 10 * errors["float32"]


# Who shares what


def test_the_precision_decides_the_group_but_not_the_images() -> None:
    plain, other = (chosen("lenet", "sgd", precision)[0] for precision in ("float32", "bfloat16"))
    one, two = (Graph.of(recipe, lambda *_, **__: nn.Identity()) for recipe in (plain, other))
    assert one != two
    assert one.stream == two.stream
    lanes = Lanes(DATA, lambda shape, classes, **_: Watching(shape, classes), fuse=True)
    for key, recipe in enumerate((plain, other, replace(other, seed=9))):
        lanes.add(key, replace(recipe, hidden_width=None, dropout=None), Watching(DATA.input_shape, DATA.num_classes))
    assert sorted(sorted(group.keys) for group in lanes.groups()) == [[0], [1, 2]]


# What a recipe is


def test_recipes_without_a_precision_are_what_they_were() -> None:
    """The keys are those that hpsearch made before there were precisions."""
    recipe = recipes("lenet", "sgd", "constant", 16)[1]
    recorded = {name: value for name, value in recipe.as_dict().items() if name != "precision"}
    assert Recipe(**recorded) == recipe
    assert recipe.identity() == recorded
    assert key_of(recipe.identity(), "fingerprint", "2026-01-02") == "ad7fd4a34fdb0a21391a0ed7b83dfd31"
    assert trial_key("prefix-", 3, [recipe.identity(), "fingerprint"]) == "prefix-000003-bbb7593cfee1b575"
    other = replace(recipe, precision="bfloat16")
    assert Recipe(**other.as_dict()) == other
    assert other.identity() == other.as_dict()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_digits_are_learnt(precision: str, tmp_path: Path) -> None:
    data: DeviceData = place(load("digits", data_dir=tmp_path, cache_dir=tmp_path, image_size=16), CPU)
    recipe = Recipe("2lp", 8, "adam", 0.005, batch_size=64, hidden_width=64, precision=precision)
    running = alone(recipe, data)
    assert [running.run_epoch() for _ in range(recipe.epochs)][-1].validation_accuracy > 0.93
