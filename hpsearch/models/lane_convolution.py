"""`SquashedConv2d` on a GPU, for one trial or, under vmap, for many at once: the kernels of convolution.cu.

cuDNN has no fast way for many small convolutions with weights of their own; docs/benchmarks.md has the comparison.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpsearch.kernels import SHARED_BYTES, Kernels, architecture, available, compiled

KERNEL, TAPS, TAPS_ALIGNED, ADDED = 5, 25, 28, 1650  # as in convolution.cu
MOST_OUTPUTS = 16  # of a layer; a thread sums up to eight, of four places each, in its registers
MOST_FILTERS = 9  # of a block that finds the gradient of weights, whose threads sum five numbers of each
BLOCKS = 2_500  # of that gradient, at least: many times what runs at once, so that the last ones make little difference
WARP, MOST_THREADS = 32, 1024  # of a warp, and of a block


@dataclass(frozen=True)
class Sizes:
    """Of a layer's images and filters; `shared`: all lanes have the same images."""

    channels: int
    rows: int
    columns: int
    outputs: int
    shared: bool

    @property
    def squares(self) -> int:
        """Of 2 x 2 in a map."""
        return (self.rows - KERNEL + 1) * (self.columns - KERNEL + 1) // 4

    @cached_property
    def defines(self) -> dict[str, int]:
        """The names that convolution.cu leaves open."""
        tile_outputs = _divisor(self.outputs, 4)
        return {
            "CHANNELS": self.channels,
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "OUTPUTS": self.outputs,
            "SHARED_IMAGES": int(self.shared),
            "FORWARD_SLOTS": max(1, 128 // self.squares),
            "FORWARD_GROUPS": self.outputs // _divisor(self.outputs, 8),
            "TILE_OUTPUTS": tile_outputs,
            "TILE_CHANNELS": _divisor(self.channels, max(1, MOST_FILTERS // tile_outputs)),
            "IMAGE_SLOTS": max(1, 1024 // (self.rows * self.columns)),
            "IMAGE_OUTPUTS": _divisor(self.outputs, 4),
        }

    @cached_property
    def fits(self) -> bool:
        """Whether the kernels can do it."""
        map_rows, map_columns = self.rows - KERNEL + 1, self.columns - KERNEL + 1
        if map_rows % 2 or map_columns % 2 or not 2 <= map_rows <= WARP or not 2 <= map_columns <= WARP:
            return False
        if self.outputs > MOST_OUTPUTS:
            return False
        sizes, pixels = self.defines, self.rows * self.columns
        threads = sizes["FORWARD_GROUPS"] * sizes["FORWARD_SLOTS"] * self.squares
        if max(threads, sizes["IMAGE_SLOTS"] * (pixels // 4)) > MOST_THREADS:
            return False
        forward = sizes["FORWARD_SLOTS"] * self.channels * pixels
        slots = WARP // map_rows
        maps = slots * sizes["TILE_OUTPUTS"] * map_rows * (map_columns + 1)
        weight = max(maps, ADDED) + slots * sizes["TILE_CHANNELS"] * self.rows * (self.columns + 1)
        margin = 2 * (KERNEL - 1)
        image = sizes["IMAGE_SLOTS"] * sizes["IMAGE_OUTPUTS"] * (map_rows + margin) * (map_columns + margin)
        filters = TAPS_ALIGNED * self.channels
        most = max(forward + filters * self.outputs, weight, image + filters * sizes["IMAGE_OUTPUTS"])
        return 4 * most <= SHARED_BYTES


def fits(maps: Tensor, outputs: int) -> bool:
    """Whether these maps (B, C, H, W), float32 on a GPU, are for the kernels."""
    if not maps.is_cuda or maps.dtype != torch.float32 or torch.is_autocast_enabled("cuda"):
        return False
    if torch.compiler.is_compiling() or not available(maps.device):
        return False
    return _of(*maps.shape[-3:], outputs, False).fits


def squashed_convolution(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps (B, C, H, W), weight (O, C, 5, 5) and bias (O,) -> (B, O, h, w), half of what the convolution leaves."""
    keep = torch.is_grad_enabled()
    pooled: Tensor = _InLanes.apply(maps[None], weight[None], bias[None], keep)[0]
    return pooled.squeeze(0)  # to index it would cost its gradient a copy


class _InLanes(torch.autograd.Function):
    """Maps (K or 1, B, C, H, W), weight (K, O, C, 5, 5), bias (K, O) -> pooled (K, B, O, h, w), and squashed.

    Squashed maps are kept for the backward pass; without one there are none. Under vmap, K is 1 and the trials are the
    lanes.
    """

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        maps, (num_lanes, outputs) = maps.contiguous(), bias.shape
        sizes = _sizes(maps, weight)
        num_images, defines = maps.shape[1], sizes.defines
        rows, columns = sizes.rows - KERNEL + 1, sizes.columns - KERNEL + 1
        pooled = maps.new_empty(num_lanes, num_images, outputs, rows // 2, columns // 2)
        squashed = maps.new_empty((num_lanes, num_images, outputs, rows, columns) if keep else 0)
        slots, groups = defines["FORWARD_SLOTS"], defines["FORWARD_GROUPS"]
        blocks = (ceil(num_images / slots), num_lanes, 1)
        given = maps, weight.contiguous(), bias.contiguous(), squashed if keep else None, pooled, num_images
        _kernels(sizes, maps.device)("forward", blocks, groups * slots * sizes.squares, *given)
        return pooled, squashed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], inputs[1], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        maps, weight, squashed = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_maps = image_gradient(maps, weight, gradient, squashed) if ctx.needs_input_grad[0] else None
        return to_maps, *weight_gradient(maps, weight, gradient, squashed), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, maps: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> Any:
        lanes = [
            one.expand(info.batch_size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip((weight, bias), in_dims[1:3], strict=True)
        ]
        images = maps if in_dims[0] is None else maps.movedim(in_dims[0], 0).squeeze(1)
        pooled, squashed = _InLanes.apply(images, *(one.squeeze(1) for one in lanes), keep)
        return (pooled[:, None], squashed[:, None] if keep else squashed), (0, 0 if keep else None)


def weight_gradient(maps: Tensor, weight: Tensor, gradient: Tensor, squashed: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (K, O, C, 5, 5) and the bias (K, O)."""
    sizes = _sizes(maps, weight)
    defines, num_images, (num_lanes, outputs) = sizes.defines, maps.shape[1], weight.shape[:2]
    tiles = outputs // defines["TILE_OUTPUTS"] * (sizes.channels // defines["TILE_CHANNELS"])
    slots = WARP // (sizes.rows - KERNEL + 1)
    rounds = ceil(num_images / slots)
    rounds_of_a_part = max(1, rounds // ceil(BLOCKS / (num_lanes * tiles)))
    parts = ceil(rounds / rounds_of_a_part)
    num_weights = outputs * sizes.channels * TAPS
    partial = maps.new_empty(parts, num_lanes, num_weights + outputs)
    given = maps.contiguous(), gradient, squashed, partial, num_images, rounds_of_a_part * slots
    _kernels(sizes, maps.device)("weight_gradient", (parts, num_lanes, tiles), KERNEL * WARP, *given)
    total = partial.sum(0)
    return total[:, :num_weights].view(weight.shape), total[:, num_weights:]


def image_gradient(maps: Tensor, weight: Tensor, gradient: Tensor, squashed: Tensor) -> Tensor:
    """The gradient of the maps, the sum over the lanes where these share them."""
    sizes = _sizes(maps, weight)
    slots, num_images = sizes.defines["IMAGE_SLOTS"], maps.shape[1]
    result = maps.new_empty(len(weight), *maps.shape[1:])
    blocks = (ceil(num_images / slots), len(weight), 1)
    given = weight.contiguous(), gradient, squashed, result, num_images
    _kernels(sizes, maps.device)("image_gradient", blocks, slots * (sizes.rows * sizes.columns // 4), *given)
    return result.sum(0, keepdim=True) if len(maps) < len(weight) else result


def _sizes(maps: Tensor, weight: Tensor) -> Sizes:
    return _of(*maps.shape[-3:], weight.shape[1], len(maps) < len(weight))


_of = cache(Sizes)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is no larger than `most`."""
    return next(one for one in range(min(number, most), 0, -1) if number % one == 0)


@cache
def _kernels(sizes: Sizes, device: torch.device) -> Kernels:
    return Kernels(compiled("hpsearch.models", "convolution.cu", sizes.defines, architecture(device)), device)
