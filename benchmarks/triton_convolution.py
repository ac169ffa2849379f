"""Convolution, tanh and pooling of many lanes as three Triton kernels: forward, gradient of weights, of images.

A grouped convolution of 5 x 5 without padding, squashed, and pooled by means of 2 x 2. Axes: B batch, G groups,
C channels and O outputs of one group, H, W rows and columns of the images, h, w those of the convolution's outputs,
both even. G = K where each lane has images of its own; G = 1, and O is all outputs of all lanes, where they share them.
Each kernel is one matrix product for each group, of which one factor is gathered while it runs and never stored
(Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, https://arxiv.org/abs/1410.0759, section 3).
Of full size only the squashed maps are stored, once, for backward: the convolution itself and the gradient before tanh
never are. Sums are float32. With TRITON_INTERPRET=1, set before Python starts, Triton's interpreter runs the kernels on
a CPU.
"""

# ruff: noqa: E741 (O is the name of an axis)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNEL = 5  # a side of the kernel
SIDE, TAPS = tl.constexpr(KERNEL), tl.constexpr(KERNEL * KERNEL)

# Sizes of the tiles, each a power of two and at least 16, as tl.dot wants. First guesses: no GPU has seen them.
POSITIONS = 64  # rows of outputs and images: pixels of the batch
LARGEST_OUTPUTS = 64  # columns: more registers than that for each tile, and fewer tiles run at once
TERMS = 32  # terms of a sum that one step adds
COLUMNS = 128  # weights and the bias of one output: 76 for C1, whose maps are read once then, 151 for C3
PROGRAMS = 512  # that the gradient of the weights is spread over: about four for each multiprocessor of an H100

kernel = triton.jit(do_not_specialize=["B", "G", "O", "rows_of_a_part"])  # one compilation for any number of lanes


@triton.jit  # type: ignore[untyped-decorator]
def patches(images, place, y, x, terms, inside, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pixel of each term (C, 5, 5) in the patch of each output (y, x); 0 where `inside` is false or terms end.

    `place` is that of the image and its group in images (B, G, C, H, W).
    """
    channel, i, j = terms // TAPS, terms // SIDE % SIDE, terms % SIDE
    at = (place * C + channel) * (H * W) + (y + i) * W + x + j
    return tl.load(images + at, mask=inside & (terms < C * TAPS), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def before_tanh(gradient, squashed, place, y, x, inside, h: tl.constexpr, w: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of what tanh was given, at (y, x); 0 where `inside` is false.

    `place` is that of the map in gradient (B, G, O, h/2, w/2) and squashed (B, G, O, h, w).
    """
    above = tl.load(gradient + place * (h * w // 4) + y // 2 * (w // 2) + x // 2, mask=inside, other=0.0)
    value = tl.load(squashed + place * (h * w) + y * w + x, mask=inside, other=0.0)
    return above * 0.25 * (1 - value * value)


@kernel  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    images, weight, bias, squashed, pooled, B, G, O,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """squashed (B, G, O, h, w), tanh of patches times weight (G, O, C, 5, 5) and bias (G, O), and pooled.

    pooled (B, G, O, h/2, w/2) are means of four rows, which are (B, h/2, w/2, 2, 2).
    """
    h: tl.constexpr = H - SIDE + 1
    w: tl.constexpr = W - SIDE + 1
    quarter: tl.constexpr = h * w // 4
    tiles = tl.cdiv(O, OUTPUTS)
    group, tile = tl.program_id(1) // tiles, tl.program_id(1) % tiles
    rows = (tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS))[:, None]
    block, image = rows // 4, rows // (h * w)
    y, x = block // (w // 2) % (h // 2) * 2 + rows // 2 % 2, block % (w // 2) * 2 + rows % 2
    columns = (tile * OUTPUTS + tl.arange(0, OUTPUTS))[None, :]
    total = tl.zeros((POSITIONS, OUTPUTS), tl.float32)
    for start in range(0, C * TAPS, TERMS):
        terms = start + tl.arange(0, TERMS)
        left = patches(images, image * G + group, y, x, terms[None, :], image < B, C, H, W)
        at = (group * O + columns) * (C * TAPS) + terms[:, None]
        right = tl.load(weight + at, mask=(columns < O) & (terms[:, None] < C * TAPS), other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    total += tl.load(bias + group * O + columns, mask=columns < O, other=0.0)
    value = 2 * tl.sigmoid(2 * total) - 1  # tanh, which Triton's interpreter lacks
    at = ((image * G + group) * O + columns) * (h * w) + y * w + x
    tl.store(squashed + at, value, mask=(image < B) & (columns < O))
    means = tl.sum(tl.reshape(value, (POSITIONS // 4, 4, OUTPUTS)), axis=1) * 0.25
    blocks = (tl.program_id(0) * (POSITIONS // 4) + tl.arange(0, POSITIONS // 4))[:, None]
    at = ((blocks // quarter * G + group) * O + columns) * quarter + blocks % quarter
    tl.store(pooled + at, means, mask=(blocks < B * quarter) & (columns < O))


@kernel  # type: ignore[untyped-decorator]
def weight_kernel(  # type: ignore[no-untyped-def]
    images, gradient, squashed, partial, B, G, O, rows_of_a_part,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial (parts, G, O, C 5 5 + 1): gradient before tanh times patches, summed over a part of the B h w rows.

    The last column is the gradient of the bias, as if each patch ended with a 1. Parts are added afterwards, in order:
    atomic additions would need no memory, but their sum would change from run to run.
    """
    h: tl.constexpr = H - SIDE + 1
    w: tl.constexpr = W - SIDE + 1
    num_terms: tl.constexpr = C * TAPS
    tiles = tl.cdiv(O, OUTPUTS)
    part, group, tile = tl.program_id(0), tl.program_id(1) // tiles, tl.program_id(1) % tiles
    outputs = (tile * OUTPUTS + tl.arange(0, OUTPUTS))[:, None]
    terms = (tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    total = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    end = tl.minimum((part + 1) * rows_of_a_part, B * h * w)
    for start in range(part * rows_of_a_part, end, TERMS):
        rows = start + tl.arange(0, TERMS)
        place, y, x, inside = rows // (h * w) * G + group, rows // w % h, rows % w, rows < end
        mask = inside[None, :] & (outputs < O)
        left = before_tanh(gradient, squashed, place[None, :] * O + outputs, y[None, :], x[None, :], mask, h, w)
        right = patches(images, place[:, None], y[:, None], x[:, None], terms, inside[:, None], C, H, W)
        right = tl.where(terms == num_terms, 1.0, right)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    at = ((part * G + group) * O + outputs) * (num_terms + 1) + terms
    tl.store(partial + at, total, mask=(outputs < O) & (terms <= num_terms))


@kernel  # type: ignore[untyped-decorator]
def images_kernel(  # type: ignore[no-untyped-def]
    gradient, squashed, weight, result, B, G, O,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POSITIONS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """result (B, G, C, H, W), the gradient of the images: rows are pixels (B, H, W), terms (O, i, j), columns C.

    Pixel (y, x) meets the tap (i, j) of output (y - i, x - j).
    """
    h: tl.constexpr = H - SIDE + 1
    w: tl.constexpr = W - SIDE + 1
    group = tl.program_id(1)
    rows = (tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS))[:, None]
    image, y, x = rows // (H * W), rows // W % H, rows % W
    channel = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((POSITIONS, COLUMNS), tl.float32)
    for start in range(0, O * TAPS, TERMS):
        terms = start + tl.arange(0, TERMS)
        output, i, j = terms // TAPS, terms // SIDE % SIDE, terms % SIDE
        from_y, from_x = y - i[None, :], x - j[None, :]
        inside = (from_y >= 0) & (from_y < h) & (from_x >= 0) & (from_x < w)
        inside &= (image < B) & (output[None, :] < O)
        place = (image * G + group) * O + output[None, :]
        left = before_tanh(gradient, squashed, place, from_y, from_x, inside, h, w)
        at = ((group * O + output[:, None]) * C + channel) * TAPS + terms[:, None] % TAPS
        right = tl.load(weight + at, mask=(output[:, None] < O) & (channel < C), other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    at = ((image * G + group) * C + channel) * (H * W) + rows % (H * W)
    tl.store(result + at, total, mask=(image < B) & (channel < C))


class PooledConvolution(torch.autograd.Function):
    """images (B, G, C, H, W), weight (G, O, C, 5, 5), bias (G, O) -> (B, G, O, h/2, w/2); all float32."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
        (B, G, C, H, W), O = images.shape, weight.shape[1]
        images, weight = images.contiguous(), weight.contiguous()
        h, w = H - KERNEL + 1, W - KERNEL + 1
        squashed, pooled = images.new_empty(B, G, O, h, w), images.new_empty(B, G, O, h // 2, w // 2)
        columns = output_columns(O)
        grid = (triton.cdiv(B * h * w, POSITIONS), G * triton.cdiv(O, columns))
        sizes = (B, G, O, C, H, W, POSITIONS, columns, TERMS, precision)
        forward_kernel[grid](images, weight, bias.contiguous(), squashed, pooled, *sizes)
        ctx.save_for_backward(images, weight, squashed)
        ctx.precision = precision
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        images, weight, squashed = ctx.saved_tensors
        given = gradient.contiguous(), images, weight, squashed, ctx.precision
        return image_gradient(*given) if ctx.needs_input_grad[0] else None, *weight_gradients(*given), None


def weight_gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, squashed: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (G, O, C, 5, 5) and the bias (G, O)."""
    (B, G, C, H, W), O = images.shape, weight.shape[1]
    num_terms, num_rows = weight[0, 0].numel(), squashed[:, 0, 0].numel()
    outputs = output_columns(O)
    tiles = (G * triton.cdiv(O, outputs), triton.cdiv(num_terms + 1, COLUMNS))
    steps = triton.cdiv(num_rows, TERMS)
    steps_of_a_part = triton.cdiv(steps, max(1, PROGRAMS // (tiles[0] * tiles[1])))
    parts = triton.cdiv(steps, steps_of_a_part)
    partial = images.new_empty(parts, G, O, num_terms + 1)
    sizes = (B, G, O, steps_of_a_part * TERMS, C, H, W, outputs, COLUMNS, TERMS, precision)
    weight_kernel[(parts, *tiles)](images, gradient, squashed, partial, *sizes)
    total = partial.sum(0)
    return total[..., :-1].reshape(weight.shape), total[..., -1]


def image_gradient(gradient: Tensor, images: Tensor, weight: Tensor, squashed: Tensor, precision: str) -> Tensor:
    """The gradient of the images (B, G, C, H, W)."""
    (B, G, C, H, W), O = images.shape, weight.shape[1]
    result = torch.empty_like(images)
    grid = (triton.cdiv(B * H * W, POSITIONS), G)
    columns = max(16, triton.next_power_of_2(C))
    sizes = (B, G, O, C, H, W, POSITIONS, columns, TERMS, precision)
    images_kernel[grid](gradient, squashed, weight, result, *sizes)
    return result


def output_columns(num_outputs: int) -> int:
    """The columns of a tile for so many outputs of a group."""
    columns: int = triton.next_power_of_2(num_outputs)
    return min(LARGEST_OUTPUTS, max(16, columns))
