"""Layers that compute what torch's own do, with less memory traffic."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.models.lane_convolution import KERNEL, fits, squashed_convolution

ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # A B^T by oneDNN; torch itself asks MKL
WIDE = 2**20  # weights (4 MB) from which on a linear layer has ways of its own
FEW_FILTERS = 8  # of a convolution: half of those that oneDNN computes at once


class WideLinear(nn.Linear):
    """nn.Linear for a large weight, which oneDNN may multiply, and whose gradient may be taken as its two factors.

    Both where they are asked for: `alone` says that one trial trains on a CPU, `in_lanes` that several do under vmap.

    The gradient of the weight (O, I) is the product of the output's gradient (B, O) and the input (B, I). For 3 million
    weights and a batch of 64 the factors are a fiftieth of the product, and moving that through memory takes a CPU as
    long as computing it. While `factors` is a list, backward appends the two factors to it and leaves the weight's
    gradient out; they are float32 also where autocast has the layer compute in bfloat16.
    """

    factors: list[tuple[Tensor, Tensor]] | None = None
    alone = False
    in_lanes = False

    @property
    def is_wide(self) -> bool:
        """Whether it is worth it."""
        return self.weight.numel() >= WIDE

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(inputs)
        asked = (self.alone and self.is_wide) or self.factors is not None
        if asked and ONEDNN is not None and _in_float32(inputs):
            weight = self.weight if self.factors is None else self.weight.detach()
            product: Tensor = _ByOneDnn.apply(inputs, weight, self.bias, self.factors)
            return product
        if self.factors is None:
            if self.in_lanes and self.is_wide and not torch.compiler.is_compiling():
                outputs: Tensor = _RowsOfGradients.apply(inputs, self.weight, self.bias)
                return outputs
            return super().forward(inputs)
        factors, detached = self.factors, inputs.detach()
        weight = self.weight.detach()  # first in the product: two cores share that better than functional.linear's
        columns = inputs.T
        outputs = (weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], weight, columns)).T
        outputs.register_hook(lambda gradient: factors.append((gradient.float(), detached.float())))  # type: ignore[no-untyped-call]
        return outputs


class _RowsOfGradients(torch.autograd.Function):
    """nn.functional.linear, whose weight gets its gradient in rows: under vmap, torch's would have to be copied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.has_bias, device = inputs[2] is not None, inputs[0].device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rounded = gradient.to(ctx.dtype)  # products have the precision of the forward pass
        to_inputs = (rounded @ weight.to(ctx.dtype)).to(inputs.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (rounded.T @ inputs.to(ctx.dtype)).to(weight.dtype)
        return to_inputs, to_weight, gradient.sum(0).to(weight.dtype) if ctx.has_bias else None


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


class SquashedConv2d(nn.Conv2d):
    """(B, I, H, W) -> (B, O, h, w): nn.Conv2d, nn.Tanh, nn.AvgPool2d(2), in less of a CPU's time.

    `alone` as in `WideLinear`: then the convolution of few filters has the four places of each square as channels of
    their own. oneDNN computes 16 filters in the time of 6, and what is pooled lies side by side. `in_lanes` likewise:
    then a GPU has kernels of our own for it.
    """

    alone = False
    in_lanes = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.pool = SquashingPool2d()

    def forward(self, maps: Tensor) -> Tensor:
        if self.alone and self.out_channels <= FEW_FILTERS and torch.is_grad_enabled() and _in_float32(maps):
            squashed: Tensor = _SquashedConv.apply(maps, self.weight, self.bias)
            return squashed
        if self.in_lanes and self.bias is not None and self.kernel_size[0] == KERNEL and fits(maps, self.out_channels):
            return squashed_convolution(maps, self.weight, self.bias)
        pooled: Tensor = self.pool(super().forward(maps))
        return pooled


class _SquashedConv(torch.autograd.Function):
    """Maps (B, I, H, W), weight (O, I, k, k) and bias (O,) -> (B, O, h, w), the four places of a square at once.

    The weight stands four times in one of (4 O, I, k + 1, k + 1), once for each place, and the stride is two. It is
    doubled, because tanh(x) is 2 sigmoid(2 x) - 1.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters, channels, size, _ = weight.shape
        four = weight.new_zeros(4, filters, channels, size + 1, size + 1)
        for place in _places(four):
            torch.mul(weight, 2, out=place)
        four = four.flatten(0, 1)
        squashed = torch.conv2d(maps, four, (bias * 2).repeat(4), 2).sigmoid_()
        ctx.save_for_backward(maps, four, squashed)
        return squashed.view(len(maps), 4, filters, *squashed.shape[2:]).sum(1).mul_(0.5).sub_(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        maps, four, squashed = ctx.saved_tensors
        places = squashed.view(len(maps), 4, *gradient.shape[1:])
        slopes = torch.ops.aten.sigmoid_backward(gradient.unsqueeze(1).expand_as(places), places).flatten(1, 2)
        to_maps, to_four, to_bias = torch.ops.aten.convolution_backward(
            slopes, maps, four, [len(four)], [2, 2], [0, 0], [1, 1], False, [0, 0], 1,
            [ctx.needs_input_grad[0], True, True],
        )  # fmt: skip
        to_weight = torch.stack(_places(to_four.view(4, -1, *four.shape[1:]))).sum(0)
        return to_maps.mul_(0.5) if to_maps is not None else None, to_weight, to_bias.view(4, -1).sum(0)


def _places(four: Tensor) -> list[Tensor]:
    """Views of (4, O, I, k + 1, k + 1): the weight (O, I, k, k) of each place of a square."""
    rows = [(four[0:2], slice(0, -1)), (four[2:4], slice(1, None))]
    return [pair[i, :, :, place, slice(i, None if i else -1)] for pair, place in rows for i in (0, 1)]


class SquashingPool2d(nn.Module):
    """(..., H, W) -> (..., H / 2, W / 2): nn.Tanh, then nn.AvgPool2d(2), in less of a CPU's time."""

    def forward(self, maps: Tensor) -> Tensor:
        rounded_twice = maps.element_size() < 4  # the sums of such maps would be
        elsewhere = maps.device.type != "cpu" or torch.compiler.is_compiling()
        if maps.shape[-2] % 2 or maps.shape[-1] % 2 or rounded_twice or elsewhere:
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


def let_alone(model: nn.Module, alone: bool) -> None:
    """Tell the layers of a model whether it is trained alone, and on a CPU."""
    for layer in model.modules():
        if isinstance(layer, SquashedConv2d | WideLinear):
            layer.alone = alone


def let_share(model: nn.Module) -> None:
    """Tell the layers of a model that many trials run through it at once, under vmap."""
    for layer in model.modules():
        if isinstance(layer, SquashedConv2d | WideLinear):
            layer.in_lanes = True


def _in_float32(inputs: Tensor) -> bool:
    return inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
