"""What is random in a program: anew at every step and epoch, and a function of the trial's seeds alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train.dropout import SeededDropout, seeded
from hpsearch.train.metrics import predictions
from hpsearch.train.program import Program, place
from tests.train.data import small_data_set

DATA = place(small_data_set(), "cpu")  # 70 images: five batches of 16 at most


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"model": "2lp", "epochs": 3, "hidden_width": 12, "batch_size": 16, "dropout": 0.5, **changes})


def program(recipe: Recipe, constructor: Any = None) -> Program:
    given = () if constructor is None else (constructor,)
    return Program(recipe, build_model(recipe, DATA.input_shape, DATA.num_classes, *given), DATA)


def test_dropout_draws_anew_at_every_step() -> None:
    running, steps = program(recipe()), list[int]()
    (dropout,) = (layer for layer in running.model.modules() if isinstance(layer, SeededDropout))
    dropout.register_forward_pre_hook(lambda layer, _: steps.append(int(layer.step)) if layer.training else None)
    for _ in range(2):
        running.run_epoch()
    assert steps == list(range(10))


def test_dropout_follows_from_the_seed_of_the_trial() -> None:
    """Two trials from the same weights: what they drop is all that differs."""
    start = program(recipe()).state()

    def loss(**changes: Any) -> float:
        running = program(recipe(**changes))
        running.restore(start)
        return running.run_epoch().training_loss

    assert loss(seed=1) == loss(seed=1) != loss(seed=2)
    assert loss(seed=1, dropout=0.0) == loss(seed=2, dropout=0.0)


class Drawing(nn.Module):
    """Draws a number of its own with every batch that it is trained on."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer, self.drawn = nn.Linear(math.prod(input_shape), num_classes), list[float]()

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.drawn.append(torch.rand(()).item())
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def drawn(seed: int) -> list[float]:
    """What it draws in two epochs of five steps."""
    running = program(recipe(model="drawing", hidden_width=None, dropout=None, seed=seed), Drawing)
    for _ in range(2):
        running.run_epoch()
    assert isinstance(running.model, Drawing)
    return running.model.drawn


def test_a_network_that_draws_itself_draws_anew_in_every_epoch() -> None:
    first = drawn(1)
    torch.rand(3)
    assert drawn(1) == first
    assert len(set(first) | set(drawn(2))) == 20


class Doubtful(nn.Module):
    """Draws while it is evaluated, as Monte Carlo dropout does."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(functional.dropout(images.flatten(1), 0.5))
        return logits


def test_what_a_network_draws_while_it_is_evaluated_is_the_same_each_time() -> None:
    running = program(recipe(model="doubtful", hidden_width=None, dropout=None), Doubtful)
    first, classes = running.validate(), predictions(running.model, DATA)
    before = torch.get_rng_state()
    assert running.validate() == first
    assert torch.equal(predictions(running.model, DATA), classes)
    assert float((classes == DATA.validation_labels).double().mean()) == pytest.approx(first[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropout_rate_can_be_assigned_and_be_one() -> None:
    model = nn.Sequential(nn.Dropout(0.0))
    (layer,) = seeded(model)
    assert torch.equal(model(torch.ones(4, 5)), torch.ones(4, 5))
    layer.p = 1.0
    assert torch.equal(model(torch.ones(4, 5)), torch.zeros(4, 5))
    layer.p = 0.5
    assert set(model(torch.ones(8, 9)).unique().tolist()) == {0.0, 2.0}


class Steep(nn.Module):
    """Its gradients are finite numbers whose squares are not."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1e-25 * torch.randn(math.prod(input_shape), num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ (self.weight * 1e24)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_gradient_norm_that_is_no_number_is_a_divergence(optimizer: str) -> None:
    """With losses that are: clipping would make nothing of such a step."""
    given = recipe(model="steep", hidden_width=None, dropout=None, optimizer=optimizer, learning_rate=1e-30)
    result = program(given, Steep).run_epoch()
    assert math.isfinite(result.training_loss)
    assert not math.isfinite(result.gradient_norm)
    assert result.diverged
    assert math.isnan(result.validation_loss)


def test_a_model_that_a_program_failed_to_take_is_seeded_as_before() -> None:
    """Without memory for a program the trial waits, and its model has been seen by one already."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.25))
    layers = seeded(model)
    assert seeded(model) == layers
    assert len(layers) == 2
