"""The program: learns, resumes bit for bit, diverges quietly, and equals a plain torch training loop."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from hpsearch.models import MODELS
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train import AUGMENTATIONS, OPTIMIZERS, SCHEDULES
from hpsearch.train import program as train_program
from hpsearch.train.augment import normalise
from hpsearch.train.dropout import seeded
from hpsearch.train.optimizers import factored_norm
from hpsearch.train.program import EpochResult, Program, place
from hpsearch.train.stream import Stream
from tests.train.data import small_data_set

DATA = place(small_data_set(), "cpu")  # 70 images: with batches of 16 the last one has 6


def recipe(**changes: Any) -> Recipe:
    defaults = {"model": "2lp", "epochs": 3, "hidden_width": 12, "batch_size": 16, "dropout": 0.2, "clip_norm": 1.0}
    values = {**defaults, **changes}
    if values.get("scheduler") == "onecycle":
        values = {"peak_learning_rate": 0.05, **values}
    return Recipe(**values)


def program(recipe: Recipe) -> Program:
    return Program(recipe, build_model(recipe, DATA.input_shape, DATA.num_classes), DATA)


def numbers(result: EpochResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "images_per_second"}


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_resumed_run_is_bit_identical(model: str, optimizer: str, scheduler: str) -> None:
    chosen = recipe(model=model, optimizer=optimizer, scheduler=scheduler, augmentation="crop-flip", weight_decay=0.01)
    straight = program(chosen)
    results, states = [], [straight.state()]
    for _ in range(chosen.epochs):
        results.append(numbers(straight.run_epoch()))
        states.append(straight.state())
    for epoch in range(1, chosen.epochs):
        resumed = program(chosen)
        torch.rand(3)  # the global random state must not matter
        resumed.restore(states[epoch])
        assert resumed.epoch == epoch
        assert [numbers(resumed.run_epoch()) for _ in range(epoch, chosen.epochs)] == results[epoch:]
        for name, tensor in resumed.state().items():
            assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(states[-1][name])), name


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_learns(augmentation: str) -> None:
    chosen = recipe(epochs=20, learning_rate=0.01, optimizer="adam", augmentation=augmentation, dropout=0.0)
    running = program(chosen)
    results = [running.run_epoch() for _ in range(chosen.epochs)]
    assert [result.epoch for result in results] == list(range(1, 21))
    assert results[-1].validation_loss < 0.5 * results[0].validation_loss
    assert results[-1].validation_accuracy > 0.7
    assert results[-1].images_per_second > 0
    assert not any(result.diverged for result in results)


def test_equals_a_plain_training_loop() -> None:
    """LeNet-5, SGD, onecycle, clipping: torch's modules and classes on the same batches."""
    chosen = recipe(model="lenet", scheduler="onecycle", dropout=0.0, clip_norm=0.5, weight_decay=0.01)
    running = program(chosen)
    c5, f6, output = (getattr(build_model(chosen, DATA.input_shape, 4), name) for name in ("c5", "f6", "output"))
    convolutions = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    plain = nn.Sequential(*convolutions, nn.Flatten(), c5, nn.Tanh(), f6, nn.Tanh(), output)
    for parameter, value in zip(plain.parameters(), running.model.parameters(), strict=True):
        parameter.data.copy_(value.data)
    stream = Stream("none", 16, chosen.stream_seed)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=15, div_factor=5)
    for epoch in range(3):
        losses, norms = [], []
        for images, labels in stream.batches(DATA, epoch):
            loss = functional.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(clip_grad_norm_(plain.parameters(), 0.5)))
            optimizer.step()
            losses.append(loss.item() * len(labels))
            rate = scheduler.get_last_lr()[0]
            if epoch < 2 or len(losses) < 5:
                scheduler.step()
        result = running.run_epoch()
        assert len(losses) == 5
        # float32 with other orders of summation, over at most 15 steps
        assert result.training_loss == pytest.approx(sum(losses) / 70, rel=1e-4)
        assert result.gradient_norm == pytest.approx(sum(norms) / 5, rel=1e-3)
        assert result.learning_rate == pytest.approx(rate)
    with torch.no_grad():
        logits = plain(normalise(DATA.validation_images, DATA.mean, DATA.std))
    assert result.validation_loss == pytest.approx(
        functional.cross_entropy(logits, DATA.validation_labels).item(), rel=1e-4
    )


@pytest.mark.parametrize("model", MODELS)
def test_divergence_is_a_result_and_no_exception(model: str) -> None:
    running = program(recipe(model=model, learning_rate=1e38, clip_norm=0.0))
    result = [running.run_epoch() for _ in range(2)][-1]
    assert result.diverged
    assert math.isnan(result.validation_loss)


def test_stream_is_a_function_of_seed_and_epoch_and_sees_every_image_once() -> None:
    def labels_of(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in Stream("none", 16, seed).batches(DATA, epoch)]).tolist()

    assert labels_of(1, 0) == labels_of(1, 0)
    assert labels_of(1, 0) != labels_of(1, 1) != labels_of(2, 1)
    assert sorted(labels_of(1, 0)) == sorted(DATA.train_labels.tolist())
    assert [len(labels) for _, labels in Stream("none", 16, 1).batches(DATA, 0)] == [16, 16, 16, 16, 6]


def test_seeds_of_model_and_stream_are_separate() -> None:
    base = program(recipe()).run_epoch()
    assert numbers(program(recipe()).run_epoch()) == numbers(base)
    assert program(recipe(seed=1)).run_epoch().training_loss != base.training_loss
    assert program(recipe(stream_seed=1)).run_epoch().training_loss != base.training_loss


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    program(recipe()).run_epoch()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("model", ["2lp", "3lp"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_factored_gradients_change_nothing(model: str, clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the order of float32 sums differs: after 15 steps a thousand roundings, 1e-4."""
    chosen = recipe(model=model, clip_norm=clip_norm, weight_decay=0.01, learning_rate=0.02)
    plain = program(chosen)
    monkeypatch.setattr("hpsearch.models.layers.WIDE", 1)
    factored = program(chosen)
    for _ in range(chosen.epochs):
        expected, found = numbers(plain.run_epoch()), numbers(factored.run_epoch())
        assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in plain.state().items():
        torch.testing.assert_close(
            torch.as_tensor(factored.state()[name]), torch.as_tensor(tensor), rtol=1e-4, atol=1e-5
        )
    state = factored.state()
    straight = factored.run_epoch()
    factored.restore(state)
    assert numbers(factored.run_epoch()) == numbers(straight)
    resumed = program(chosen)
    resumed.restore(program(chosen).state() | plain.state())
    assert resumed.run_epoch().training_loss == pytest.approx(straight.training_loss, rel=1e-4)


def test_a_dropout_in_two_places_draws_for_both() -> None:
    """Were one of them left as torch's own, it would draw from the state of the process."""
    drop = nn.Dropout(0.5)
    network = nn.Sequential(nn.Linear(4, 100), drop, nn.ReLU(), drop)
    layers = seeded(network)
    assert len(layers) == 1
    assert network[1] is network[3] is layers[0]


def test_an_update_at_the_end_that_explodes_is_a_divergence() -> None:
    """The losses of the epoch were finite, the one of the network that it left is not."""
    chosen = recipe(epochs=1, batch_size=DATA.num_images, learning_rate=1e30, clip_norm=0.0, optimizer="sgd")
    result = program(chosen).run_epoch()
    assert math.isfinite(result.training_loss)
    assert math.isfinite(result.gradient_norm)
    assert result.diverged
    assert math.isnan(result.validation_loss)
    assert math.isnan(result.validation_accuracy)


@pytest.mark.parametrize(
    ("model", "native_size", "known"), [("2lp", None, [True]), ("3lp", None, [True, False]), ("2lp", 8, [False])]
)
def test_norms_take_the_similarities_of_the_images_where_they_are_the_input(
    model: str, native_size: int | None, known: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first layer, unless images are pooled before it; whole batches alone have them."""
    monkeypatch.setattr("hpsearch.models.layers.WIDE", 1)
    given: list[bool] = []

    def watched(factors: list[tuple[Tensor, Tensor]], similarity: Tensor | None) -> float:
        given.append(similarity is not None)
        if similarity is not None:
            inputs = factors[0][1]
            torch.testing.assert_close(similarity, inputs @ inputs.T)
        return factored_norm(factors, similarity)

    monkeypatch.setattr(train_program, "factored_norm", watched)
    program(recipe(model=model, native_size=native_size)).run_epoch()
    assert given == known * 4 + [False] * len(known)


class Crosswise(nn.Module):
    """Its gradients lie in memory otherwise than its parameters: transposed, and one number for all."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(math.prod(input_shape), num_classes) * 0.05)
        self.scales = nn.Parameter(torch.ones(5))

    def forward(self, images: Tensor) -> Tensor:
        return functional.linear(images.flatten(1), self.weight.T) * self.scales.sum()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_another_memory_format(name: str) -> None:
    chosen = recipe(model="crosswise", hidden_width=None, dropout=None, optimizer=name, clip_norm=0.0, epochs=1)
    ours = Program(chosen, build_model(chosen, DATA.input_shape, DATA.num_classes, Crosswise), DATA)
    theirs = build_model(chosen, DATA.input_shape, DATA.num_classes, Crosswise)
    theirs.load_state_dict(ours.model.state_dict())
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    momentum = {"momentum": chosen.momentum} if name == "sgd" else {"betas": (chosen.momentum, 0.999)}
    optimizer = kinds[name](theirs.parameters(), lr=chosen.learning_rate, weight_decay=0.0, **momentum)
    for images, labels in ours.stream.batches(DATA, 0):
        optimizer.zero_grad()
        functional.cross_entropy(theirs(images), labels).backward()
        optimizer.step()
    ours.run_epoch()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)
