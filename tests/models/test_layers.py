"""Layers of ours give what torch's own give, alone and under vmap."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from hpsearch.models import layers
from hpsearch.models.layers import SquashedConv2d, SquashingPool2d, WideLinear, let_alone, let_share


@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_equals_a_plain_layer(by_onednn: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not by_onednn:
        monkeypatch.setattr(layers, "ONEDNN", None)
    torch.manual_seed(0)
    wide, plain = WideLinear(50, 30), nn.Linear(50, 30)
    plain.load_state_dict(wide.state_dict())
    before = torch.randn(50, batch_size).T  # not contiguous, as another wide layer gives it
    results = []
    for layer in (wide, plain):
        inputs = before.clone().requires_grad_()
        wide.factors = []
        outputs = layer(inputs.relu() + layer(inputs)[:, :1])  # used twice
        (outputs.sin().sum()).backward()
        results.append((outputs, inputs.grad, layer.bias.grad))
        if layer is wide:
            gradients = [gradient.T @ given for gradient, given in wide.factors]
            assert wide.weight.grad is None
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(gradients) == 2
    torch.testing.assert_close(sum(gradients), plain.weight.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_alone_on_a_cpu_equals_a_plain_layer(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(layers, "WIDE", 1500)
    wide, plain = WideLinear(50, 30, bias=bias), nn.Linear(50, 30, bias=bias)
    plain.load_state_dict(wide.state_dict())
    let_alone(wide, True)
    results = []
    for layer in (wide, plain):
        inputs = torch.linspace(-1, 1, 400).reshape(8, 50).requires_grad_()
        outputs = layer(inputs.sin())
        wanted = [inputs, *layer.parameters()]
        results.append((outputs, *torch.autograd.grad(outputs.sin().sum(), wanted)))
    assert type(results[0][0].grad_fn) is not type(results[1][0].grad_fn)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_onednn_is_there_where_it_is_asked() -> None:
    """Without it a perceptron is slower and nobody notices."""
    if torch.backends.mkldnn.is_available():
        assert layers.ONEDNN is not None


@pytest.mark.parametrize("shape", [(3, 6, 28, 28), (2, 4, 6), (5, 16, 13, 10), (1, 1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squashing_pool_is_tanh_and_average_pooling(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = (3 * torch.randn(shape)).requires_grad_()
    results = []
    for layer in (SquashingPool2d(), nn.Sequential(nn.Tanh(), nn.AvgPool2d(2))):
        pooled = layer(maps.to(dtype))
        results.append((pooled, *torch.autograd.grad(pooled.float().sin().sum(), [maps])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_squashing_pool_under_vmap() -> None:
    maps = torch.randn(4, 2, 3, 8, 6, requires_grad=True)
    ours = torch.vmap(SquashingPool2d())(maps)
    theirs = torch.stack([nn.AvgPool2d(2)(one.tanh()) for one in maps])
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(pooled.sin().sum(), [maps]) for pooled in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("filters", [6, 16])
@pytest.mark.parametrize("size", [32, 17])
def test_squashed_convolution(alone: bool, filters: int, size: int) -> None:
    torch.manual_seed(0)
    ours = SquashedConv2d(3, filters, 5)
    convolution = nn.Conv2d(3, filters, 5)
    convolution.load_state_dict(ours.state_dict())
    plain = nn.Sequential(convolution, nn.Tanh(), nn.AvgPool2d(2))
    let_alone(ours, alone)
    results = []
    for layer in (ours, plain):
        maps = torch.linspace(-2, 2, 4 * 3 * size * size).reshape(4, 3, size, size).cos().requires_grad_()
        pooled = layer(maps)
        results.append((pooled, *torch.autograd.grad(pooled.sin().mean(), [maps, *layer.parameters()])))
    for name, mine, theirs in zip(("pooled", "maps", "weight", "bias"), *results, strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    of_ours = type(results[0][0].grad_fn).__name__
    assert (of_ours == "_SquashedConvBackward") == (alone and filters == 6)


def test_places_of_a_square() -> None:
    """The weight of each stands where the square's place is, and nothing else does."""
    four = torch.zeros(4, 1, 1, 3, 3)
    for number, place in enumerate(layers._places(four)):
        place.fill_(number + 1)
    assert four[:, 0, 0].tolist() == [
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
        [[0, 2, 2], [0, 2, 2], [0, 0, 0]],
        [[0, 0, 0], [3, 3, 0], [3, 3, 0]],
        [[0, 0, 0], [0, 4, 4], [0, 4, 4]],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_in_lanes_a_wide_layer_gives_each_what_it_gives_alone(shared: bool, dtype: torch.dtype) -> None:
    """Gradients come in rows; products under autocast have its precision in the backward pass as well."""
    num_lanes, rounded = 3, dtype != torch.float32
    wide = WideLinear(1024, 1024)
    let_share(wide)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(num_lanes, 1024, 1024, generator=generator) / 32).requires_grad_()
    bias = torch.randn(num_lanes, 1024, generator=generator).requires_grad_()
    inputs = torch.randn(1 if shared else num_lanes, 8, 1024, generator=generator).requires_grad_(not shared)
    above = torch.randn(num_lanes, 8, 1024, generator=generator)

    def one(weight: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = functional_call(wide, {"weight": weight, "bias": bias}, (inputs,))
        return outputs

    given = [weight, bias, *([] if shared else [inputs])]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
        lanes = vmap(one, in_dims=(0, 0, None if shared else 0))(weight, bias, inputs[0] if shared else inputs)
    found = torch.autograd.grad((lanes * above).sum(), given)
    assert found[0].is_contiguous()
    let_alone(wide, False)
    for lane in range(num_lanes):
        own = inputs[0 if shared else lane]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
            outputs = nn.functional.linear(own, weight[lane], bias[lane])
        exact = torch.autograd.grad((outputs * above[lane]).sum(), given)
        for ours, theirs in zip(found, exact, strict=True):
            scale = theirs[lane].abs().max() if theirs.shape[0] == num_lanes else theirs.abs().max()
            difference = (ours[lane] - theirs[lane]).abs().max() / scale
            assert difference < (1e-2 if rounded else 1e-5)
