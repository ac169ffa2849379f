"""Layers that compute what torch's own do, with less memory traffic."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # A B^T by oneDNN; torch itself asks MKL


class WideLinear(nn.Linear):
    """nn.Linear for a large weight, which oneDNN may multiply, and whose gradient may be taken as its two factors.

    Both where they are asked for: `alone` says that one trial trains on a CPU, and not several under vmap.

    The gradient of the weight (O, I) is the product of the output's gradient (B, O) and the input (B, I). For 3 million
    weights and a batch of 64 the factors are a fiftieth of the product, and moving that through memory takes a CPU as
    long as computing it. While `factors` is a list, backward appends the two factors to it and leaves the weight's
    gradient out; they are float32 also where autocast has the layer compute in bfloat16.
    """

    factors: list[tuple[Tensor, Tensor]] | None = None
    alone = False

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(inputs)
        asked = self.alone or self.factors is not None
        if asked and ONEDNN is not None and inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            weight = self.weight if self.factors is None else self.weight.detach()
            product: Tensor = _ByOneDnn.apply(inputs, weight, self.bias, self.factors)
            return product
        if self.factors is None:
            return super().forward(inputs)
        factors, detached = self.factors, inputs.detach()
        weight = self.weight.detach()  # first in the product: two cores share that better than functional.linear's
        columns = inputs.T
        outputs = (weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], weight, columns)).T
        outputs.register_hook(lambda gradient: factors.append((gradient.float(), detached.float())))  # type: ignore[no-untyped-call]
        return outputs


class _ByOneDnn(torch.autograd.Function):
    """Inputs (B, I), weight (O, I), bias (O,) -> (B, O); `factors`, if any, get those of the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, factors: list[Any] | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.factors, ctx.has_bias = factors, bias is not None
        outputs: Tensor = ONEDNN(weight, inputs.contiguous(), None, "none", [], "")  # (O, B)
        return (outputs if bias is None else outputs.add_(bias[:, None])).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        if ctx.factors is not None:
            ctx.factors.append((gradient, inputs))
        to_inputs = gradient @ weight if ctx.needs_input_grad[0] else None
        to_weight = gradient.T @ inputs if ctx.needs_input_grad[1] else None
        return to_inputs, to_weight, gradient.sum(0) if ctx.has_bias else None, None


class SquashingPool2d(nn.Module):
    """(..., H, W) -> (..., H / 2, W / 2): nn.Tanh, then nn.AvgPool2d(2), in less of a CPU's time."""

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2] % 2 or maps.shape[-1] % 2 or maps.element_size() < 4:  # whose sums would be rounded twice
            return functional.avg_pool2d(maps.tanh(), 2)
        pooled: Tensor = _Squashed.apply(maps)[0]
        return pooled


class _Squashed(torch.autograd.Function):
    """The mean of the tanh of each square of four, and what backward needs of the maps.

    tanh(x) is 2 sigmoid(2 x) - 1, which torch computes faster on a CPU; twice and minus one come after the mean.
    Sums of whole rows come first, because they are contiguous.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> tuple[Tensor, Tensor]:
        squashed = (maps * 2).sigmoid_()
        rows = squashed[..., ::2, :] + squashed[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]) * 0.5 - 1, squashed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (squashed,) = ctx.saved_tensors
        rows = gradient.unsqueeze(-1).expand(*gradient.shape, 2).flatten(-2)
        each = torch.stack((rows, rows), -2).flatten(-3, -2)
        slopes: Tensor = torch.ops.aten.sigmoid_backward(
            each, squashed
        )  # tanh' is 4 sigmoid', a quarter of it for each
        return slopes
