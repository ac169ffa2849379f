"""Every optimizer, with and without clipping, equals torch.optim's over many steps."""

from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from hpsearch.train import OPTIMIZERS, optimizers
from hpsearch.train.optimizers import FactoredSGD, Optimizer, Update, clip_divisor, factored_norm, gradient_norm

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
            torch.testing.assert_close(norm, clip_grad_norm_(theirs, clip_norm))
        reference.step()
        divisor = clip_divisor(norm, clip_norm) if clip_norm else None
        optimizer.apply(ours, gradients, buffers, Update(step, rate, momentum, weight_decay, divisor))
    for a, b in zip(ours, theirs, strict=True):  # float32 roundings of 20 steps, in another order
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_norm_of_no_finite_number_spreads() -> None:
    assert clip_divisor(torch.tensor(float("nan")), 1.0).isnan()
    assert clip_divisor(torch.tensor(float("inf")), 1.0).isinf()


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_factored_sgd_equals_sgd_on_the_product(uses: int, weight_decay: float, clip_norm: float) -> None:
    """In float64, where only the order of sums differs: 1e-12 is a thousand roundings."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    other = weight.clone()
    buffer, other_buffer = torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = FactoredSGD([weight], [buffer])
    for step, momentum in enumerate([0.9, 0.5, 1.0, 0.0, 0.9, *[0.3] * 10]):  # 0.3^10 passes the smallest scale
        factors = [
            (torch.randn(3, 7, generator=generator).double(), torch.randn(3, 5, generator=generator).double())
            for _ in range(uses)
        ]
        product = sum((gradient.T @ inputs for gradient, inputs in factors), torch.zeros_like(weight))
        norm = factored_norm(factors)
        torch.testing.assert_close(norm, product.norm(), rtol=1e-12, atol=0)
        divisor = clip_divisor(norm, clip_norm) if clip_norm else None
        update = Update(step, 0.1, momentum, weight_decay, divisor)
        optimizer.apply([factors], update)
        scaled = product if divisor is None else product / divisor
        other_buffer.mul_(momentum).add_(scaled).add_(other, alpha=weight_decay)
        other.sub_(other_buffer, alpha=0.1)
        torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffer * optimizer.scale, other_buffer, rtol=1e-12, atol=1e-12)
    optimizer.settle()
    torch.testing.assert_close(buffer, other_buffer, rtol=1e-12, atol=1e-12)
