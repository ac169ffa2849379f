"""Every architecture in the table: shapes, gradients, hyperparameters, seeds, and what LeNet-5 computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpsearch.errors import DataError, UsageError
from hpsearch.models import MODELS
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe

SHAPE = (3, 32, 32)


def recipe(model: str, **changes: object) -> Recipe:
    return Recipe(model=model, epochs=1, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (1, 28, 20), (4, 17, 16)])
def test_maps_images_to_logits_and_trains_every_parameter(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(recipe(name), shape, 7)
    logits = model(torch.randn(5, *shape))
    assert logits.shape == (5, 7)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_hyperparameters_change_the_model(name: str) -> None:
    model = build_model(recipe(name, hidden_width=10, dropout=0.25), SHAPE, 7)
    assert any(isinstance(layer, nn.Linear) and layer.out_features == 10 for layer in model.modules())
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25]


def test_lenet_squashes_each_map_before_it_is_pooled() -> None:
    model = build_model(recipe("lenet"), SHAPE, 100).double()
    x = images = torch.randn(4, *SHAPE, dtype=torch.float64)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        maps = functional.conv2d(x, layer.weight, layer.bias).tanh()
        x = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    x = x.flatten(1)
    for linear in [layer for layer in model.modules() if isinstance(layer, nn.Linear)]:
        x = x.tanh() if linear.in_features != 400 else x
        x = functional.linear(x, linear.weight, linear.bias)
    assert [tuple(layer.weight.shape) for layer in convolutions] == [(6, 3, 5, 5), (16, 6, 5, 5)]
    torch.testing.assert_close(model(images), x)


def test_published_sizes() -> None:
    def widths(name: str) -> list[tuple[int, int]]:
        model = build_model(recipe(name), SHAPE, 100)
        return [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]

    assert widths("lenet") == [(400, 120), (120, 84), (84, 100)]
    assert widths("lenet-bn") == [(400, 120), (120, 84), (84, 84), (84, 100)]
    assert widths("2lp") == [(3072, 1024), (1024, 100)]
    assert widths("3lp") == [(3072, 1024), (1024, 1024), (1024, 100)]
    assert [layer.p for layer in build_model(recipe("3lp"), SHAPE, 9).modules() if isinstance(layer, nn.Dropout)] == [
        0.5
    ]


@pytest.mark.parametrize("name", MODELS)
def test_weights_follow_from_the_seed_and_global_random_numbers_go_on(name: str) -> None:
    before = torch.get_rng_state()
    first, same = (build_model(recipe(name, seed=3), SHAPE, 7).state_dict() for _ in range(2))
    other = build_model(recipe(name, seed=4), SHAPE, 7).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["lenet", "lenet-bn"])
def test_small_images_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="15 x 32 pixels are too small, at least 16 x 16"):
        build_model(recipe(name), (3, 15, 32), 7)


def test_unknown_model_and_hyperparameters_are_refused() -> None:
    class Plain(nn.Module):
        def __init__(self, input_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> None:
            super().__init__()

    with pytest.raises(UsageError, match="'nothing': is none of 2lp, 3lp, lenet, lenet-bn"):
        build_model(recipe("nothing"), SHAPE, 7)
    with pytest.raises(UsageError, match="hidden_width = 8: model plain has no such hyperparameter, it takes dropout"):
        build_model(recipe("plain", hidden_width=8), SHAPE, 7, Plain)
    assert isinstance(build_model(recipe("plain", dropout=0.1), SHAPE, 7, Plain), Plain)
