"""Frozen layers stay bit for bit, thaw when they should, and then train at their own rate."""

import pytest
import torch

from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train.freezing import layers, rest
from hpsearch.train.program import Program, place
from tests.train.data import small_data_set

DATA = small_data_set()


def program(**values):  # type: ignore[no-untyped-def]
    recipe = Recipe(**{"model": "lenet", "epochs": 4, "learning_rate": 0.05, "batch_size": 16, **values})
    model = build_model(recipe, (3, 16, 16), 4)
    return Program(recipe, model, place(DATA, "cpu"))


def changed(one, epochs: int) -> list[str]:  # type: ignore[no-untyped-def]
    """The layers that differ after so many epochs."""
    before = {name: [p.clone() for p in layer.parameters(False)] for name, layer in layers(one.model)}
    for _ in range(epochs):
        one.run_epoch()
    after = dict(layers(one.model))
    return [
        name
        for name, old in before.items()
        if any(not torch.equal(a, b) for a, b in zip(old, after[name].parameters(False), strict=True))
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_frozen_layers_rest_and_then_train(optimizer: str) -> None:
    one = program(optimizer=optimizer, frozen_layers=2, frozen_epochs=2, weight_decay=0.01)
    assert changed(one, 2) == ["c5", "f6", "output"]
    assert changed(one, 1) == ["features.c1", "features.c3", "c5", "f6", "output"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_all_layers_may_train_at_a_rate_of_their_own(optimizer: str) -> None:
    one = program(optimizer=optimizer, frozen_layers=5, frozen_epochs=0, frozen_rate=0.1)
    assert changed(one, 1) == ["features.c1", "features.c3", "c5", "f6", "output"]


def test_nothing_frozen_is_the_same_as_before() -> None:
    plain, split = program(), program(frozen_layers=3, frozen_epochs=0, frozen_rate=1.0)
    for one in (plain, split):
        one.run_epoch()
    for a, b in zip(plain.model.parameters(), split.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_tenth_of_the_rate_moves_a_tenth_as_far() -> None:
    steps = []
    for rate in (1.0, 0.1):
        one = program(frozen_layers=4, frozen_rate=rate, momentum=0.0, batch_size=70, clip_norm=0.0)
        before = one.model.c5.weight.clone()
        one.run_epoch()
        steps.append(one.model.c5.weight - before)
    assert torch.allclose(steps[1], 0.1 * steps[0], atol=1e-7)


def test_adam_counts_from_the_first_own_step() -> None:
    """Else its first steps after the thaw were three times too long: the bias correction would be over."""
    one = program(optimizer="adam", frozen_layers=4, frozen_epochs=2, batch_size=70, learning_rate=0.001)
    changed(one, 2)
    before = one.model.c5.weight.clone()
    one.run_epoch()
    assert (one.model.c5.weight - before).abs().max() <= 0.00101


def test_frozen_batch_normalisation_keeps_its_statistics() -> None:
    one = program(model="lenet-bn", frozen_layers=3, frozen_epochs=1)
    before = one.model.norm.running_mean.clone()
    one.run_epoch()
    assert torch.equal(one.model.norm.running_mean, before)
    one.run_epoch()
    assert not torch.equal(one.model.norm.running_mean, before)


def test_resuming_in_the_thawed_part_is_exact() -> None:
    one, other = (program(optimizer="adam", frozen_layers=2, frozen_epochs=1) for _ in range(2))
    one.run_epoch()
    one.run_epoch()
    other.restore(one.state())
    assert one.run_epoch().validation_loss == other.run_epoch().validation_loss
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_wide_layers_freeze_too() -> None:
    one = program(model="2lp", hidden_width=2048, frozen_layers=1, frozen_epochs=1)
    assert changed(one, 1) == ["output"]
    assert changed(one, 1) == ["hidden", "output"]


class Tokens(torch.nn.Module):
    """A network with a parameter of its own, as those with a class token have; it is its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(torch.ones(3 * 16 * 16))
        self.hidden = torch.nn.Linear(3 * 16 * 16, 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.output = torch.nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(self.hidden(images.flatten(1) + self.token)))


def test_a_network_with_parameters_of_its_own_is_frozen_from_them_on() -> None:
    recipe = Recipe("tokens", 2, learning_rate=0.05, batch_size=16, frozen_layers=1, frozen_epochs=2)
    one = Program(recipe, Tokens(), place(DATA, "cpu"))
    assert [name for name, _ in layers(one.model)] == ["", "hidden", "output"]
    assert changed(one, 1) == ["hidden", "output"]
    one.model.train()
    rest(one.model, recipe)
    assert one.model.dropout.training


def test_normalisation_without_parameters_rests_with_the_layer_before_it() -> None:
    recipe = Recipe("own", 2, frozen_layers=1, frozen_epochs=1)
    norm = torch.nn.BatchNorm1d
    hidden, output = torch.nn.Linear(768, 8), torch.nn.Linear(8, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), hidden, norm(8, affine=False), output, norm(4, affine=False))
    rest(model.train(), recipe)
    assert [layer.training for layer in model] == [True, False, False, True, True]
