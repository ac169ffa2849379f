"""Recorded steps give bit for bit what the modules and autograd give."""

import logging
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models import MODELS, layers
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train import OPTIMIZERS, program, recorded
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.program import Program
from hpsearch.train.recorded import Derived, Forward, record
from tests.train.data import small_data_set
from tests.train.test_program import numbers

DATA = place(small_data_set(), "cpu")  # 70 images: with batches of 16 the last one has 6
EPOCHS = 3


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "WORTH", 1)
    monkeypatch.setattr(recorded, "_recordings", {})
    monkeypatch.setattr(layers, "WIDE", 1500)


def trained(
    recipe: Recipe, data: DeviceData = DATA, *, records: bool
) -> tuple[list[dict[str, Any]], dict[str, Tensor | int], int]:
    """Results, last state, and how many steps a recording took."""
    model = build_model(recipe, data.input_shape, data.num_classes)
    model.static_graph = records  # type: ignore[assignment]
    running, calls = Program(recipe, model, data), []
    running.begin_epoch()
    if (step := running._recorded) is not None:
        running._recorded = lambda *batch: (calls.append(batch), step(*batch))[1]
    results = [numbers(running.run_epoch()) for _ in range(EPOCHS)]
    return results, running.state(), len(calls)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_modules_and_autograd(model: str, optimizer: str, dropout: float, precision: str) -> None:
    recipe = Recipe(
        model=model,
        epochs=EPOCHS,
        optimizer=optimizer,
        batch_size=16,
        hidden_width=12,
        dropout=dropout,
        clip_norm=1.0,
        weight_decay=0.01,
        augmentation="crop-flip",
        precision=precision,
    )
    results, state, steps = trained(recipe, records=True)
    expected, their_state, none = trained(recipe, records=False)
    assert (steps, none) == (EPOCHS * 4, 0)  # the short batch goes the other way
    assert results == expected
    for name, value in state.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(their_state[name])), name


def test_trials_share_a_recording() -> None:
    """Those of one graph, each with tensors of its own; the others not."""
    one = Recipe(model="2lp", epochs=EPOCHS, batch_size=16, hidden_width=12, native_size=8)
    large = place(small_data_set(size=24), "cpu")  # for parameters of the same shapes
    same = replace(one, seed=4, learning_rate=0.3, clip_norm=2.0)
    for recipe, data, recordings in (
        (one, DATA, 1),
        (same, DATA, 1),
        (replace(one, hidden_width=13), DATA, 2),
        (replace(one, batch_size=8), DATA, 3),
        (one, large, 4),
    ):
        recorded_result = trained(recipe, data, records=True)[:2]
        assert len(recorded._recordings) == recordings
        assert str(recorded_result) == str(trained(recipe, data, records=False)[:2])
    for width in range(20, 40):
        trained(replace(one, hidden_width=width), records=True)
    assert len(recorded._recordings) == recorded.KEPT


def test_few_steps_and_frozen_layers_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(model="2lp", epochs=EPOCHS, batch_size=16, hidden_width=12)
    assert trained(replace(recipe, frozen_layers=1, frozen_epochs=1), records=True)[2] == 0
    monkeypatch.setattr(program, "WORTH", EPOCHS * 5 + 1)
    assert trained(recipe, records=True)[2] == 0


class Odd(nn.Module):
    """A linear layer, and what may not be recordable."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.linear, self.way = nn.Linear(4, 3), way
        if way == "assign":
            self.register_buffer("constant", torch.ones(3))
        else:
            self.constant = torch.ones(3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        largest = self.linear.weight.detach().abs().max()
        if self.way == "branch" and outputs.sum() > 0:
            return outputs * 2
        numbers = {"item": Tensor.item, "list": Tensor.tolist, "numpy": lambda tensor: float(tensor.numpy())}
        if self.way in numbers:
            return outputs / numbers[self.way](largest)
        if self.way == "assign":
            self.constant = self.constant * 2
        return outputs * self.constant if self.way in ("constant", "assign") else outputs


@pytest.mark.parametrize("way", ["plain", "item", "list", "numpy", "branch", "constant", "assign"])
def test_no_number_of_a_tensor_enters_a_recording(way: str) -> None:
    """It would be that of the first step, and of the first trial: such networks are recorded rightly, or not at all."""

    def derive(model: Forward, given: Any, images: Tensor, labels: Tensor) -> Derived:
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        return loss, logits, list(torch.autograd.grad(loss, [given["linear.weight"]])), []

    network, images = Odd(way), torch.arange(8.0).reshape(2, 4)
    step = record(way, network, derive, torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    if way in ("branch", "constant", "assign"):
        assert step is None
    if way == "plain":
        assert step is not None
    if step is not None:
        with torch.no_grad():
            network.linear.weight *= 3
        torch.testing.assert_close(step(images, torch.tensor([0, 2]))[1], network(images).detach())


def test_a_request_to_stop_lets_a_recording_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of one an exception may abort the process. The epoch ends before its first step."""
    recipe, interruption, made = Recipe(model="2lp", epochs=EPOCHS, batch_size=16, hidden_width=12), Interruption(), []
    make_fx, step = recorded.make_fx, Program._step

    def asked(function: Any, **how: Any) -> Any:
        def traced(*tensors: Tensor) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return function(*tensors)

        return make_fx(traced, **how)

    def counted(*arguments: Any) -> None:
        made.append(arguments)
        step(*arguments)

    def interrupted() -> None:
        with interruption.listening(), interruption.stoppable():
            trained(recipe, records=True)

    with monkeypatch.context() as patch:
        patch.setattr(recorded, "make_fx", asked)
        patch.setattr(Program, "_step", counted)
        with pytest.raises(Interrupted):
            interrupted()
    assert made == []
    assert [recording is not None for recording in recorded._recordings.values()] == [True]
    assert trained(recipe, records=True)[2] == EPOCHS * 4


def test_what_ends_a_recording_is_not_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As by torch, which would print a traceback."""

    def derive(model: Forward, given: Any, images: Tensor, labels: Tensor) -> Derived:
        return model(images) @ images, images, [], []  # (2, 3) @ (2, 4)

    assert record("unsuited", Odd("plain"), derive, torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)) is None
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert capfd.readouterr().err == ""
