"""Every optimizer, with and without clipping, equals torch.optim's over many steps."""

import math
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from hpsearch.train import OPTIMIZERS, optimizers
from hpsearch.train.optimizers import Optimizer, ScaledSGD, Update, clip_divisor, factored_norm, gradient_norm

TORCH: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SHAPES = [(5, 3), (5,), (2, 3, 2, 2)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_equals_torch(name: str, weight_decay: float, clip_norm: float) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [torch.randn(shape, generator=generator) for shape in SHAPES]
    theirs = [tensor.clone().requires_grad_() for tensor in ours]
    reference = TORCH[name](theirs, lr=0.05, weight_decay=weight_decay)
    optimizer: Optimizer = getattr(optimizers, OPTIMIZERS[name].partition(":")[2])
    buffers = {buffer: [torch.zeros_like(tensor) for tensor in ours] for buffer in optimizer.buffers}
    for step in range(20):
        rate, momentum = 0.05 / (step + 1), 0.95 - 0.005 * step  # as onecycle changes them
        gradients = [torch.randn(shape, generator=generator) * (0.02 if step % 3 else 3) for shape in SHAPES]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient.clone()
        group = reference.param_groups[0]
        group["lr"] = rate
        group.update({"momentum": momentum} if name == "sgd" else {"betas": (momentum, 0.999)})
        norm = gradient_norm(gradients)
        if clip_norm:
            assert norm == pytest.approx(float(clip_grad_norm_(theirs, clip_norm)), rel=1e-6)
        reference.step()
        divisor = clip_divisor(norm, clip_norm) if clip_norm else None
        optimizer.apply(ours, gradients, buffers, Update(step, rate, momentum, weight_decay, divisor))
    for a, b in zip(ours, theirs, strict=True):  # float32 roundings of 20 steps, in another order
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_norm_of_no_finite_number_spreads() -> None:
    for value in (math.nan, math.inf):
        norm = gradient_norm([torch.ones(3), torch.tensor([1.0, value])])
        assert not math.isfinite(norm)
        assert not math.isfinite(clip_divisor(norm, 1.0))
    assert math.isnan(clip_divisor(math.nan, 1.0))
    assert clip_divisor(torch.tensor(math.nan), 1.0).isnan()  # type: ignore[union-attr]
    assert clip_divisor(torch.tensor(math.inf), 1.0).isinf()  # type: ignore[union-attr]


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 2.0, 30.0])  # the last take half of the weights and more in a step
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_scaled_sgd_equals_sgd_on_the_product(uses: int, weight_decay: float, clip_norm: float) -> None:
    """A bias of plain gradients and a weight of factored ones, in float64, where only the order of sums differs.

    1e-12 is a thousand roundings.
    """
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7,), (7, 5))]
    theirs, momenta = [tensor.clone() for tensor in ours], [torch.zeros_like(tensor) for tensor in ours]
    buffers = [torch.zeros_like(tensor) for tensor in ours]
    optimizer = ScaledSGD(ours, buffers)
    for step, momentum in enumerate([0.9, 0.5, 1.0, 0.0, 0.9, *[0.3] * 10]):  # 0.3^10 passes the smallest scale
        bias = torch.randn(7, generator=generator, dtype=torch.float64)
        factors = [
            (torch.randn(3, 7, generator=generator).double(), torch.randn(3, 5, generator=generator).double())
            for _ in range(uses)
        ]
        product = sum((gradient.T @ inputs for gradient, inputs in factors), torch.zeros(7, 5).double())
        assert factored_norm(factors) == pytest.approx(float(product.norm()), rel=1e-12)
        norm = gradient_norm([bias], [factored_norm(factors)])
        assert norm == pytest.approx(float(torch.cat([bias, product.flatten()]).norm()), rel=1e-12)
        divisor = clip_divisor(norm, clip_norm) if clip_norm else 1.0
        optimizer.apply([bias], [factors], Update(step, 0.1, momentum, weight_decay, divisor if clip_norm else None))
        for their, kept, gradient in zip(theirs, momenta, (bias, product), strict=True):
            kept.mul_(momentum).add_(gradient / divisor).add_(their, alpha=weight_decay)
            their.sub_(kept, alpha=0.1)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        pairs = zip(buffers, ours, strict=True)
        scaled = [buffer * optimizer.scale + own * optimizer.decay for buffer, own in pairs]
        torch.testing.assert_close(scaled, momenta, rtol=1e-12, atol=1e-12)
    optimizer.settle()
    torch.testing.assert_close(buffers, momenta, rtol=1e-12, atol=1e-12)


def test_scaled_sgd_of_strong_decay_stays_finite() -> None:
    """The scale grows where the decay takes more than the momentum: far past the limits of float32 in 1,000 steps."""
    ours, buffers = [torch.ones(3)], [torch.zeros(3)]
    optimizer = ScaledSGD(ours, buffers)
    for step in range(1000):
        optimizer.apply([torch.ones(3)], [], Update(step, 0.1, 0.9, 4.0))
        assert math.isfinite(optimizer.scale)
        assert math.isfinite(optimizer.decay)
    torch.testing.assert_close(ours, [torch.full((3,), -0.25)])  # where gradient and decay are even
