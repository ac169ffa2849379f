"""LeNet-5's convolutional layers for K lanes, forward and backward: vmap, groups, unfolding, Triton, our own kernels.

Run, in the repository's folder:
    python -m benchmarks.convolutions --device cuda       a GPU, 1 to 256 lanes; --tf32: products in TF32
    python -m benchmarks.convolutions                     one CPU thread, 1 to 16 lanes, without Triton
    python -m benchmarks.convolutions --check             no timing: every side against conv2d in float64;
                                                          on a CPU with Triton if TRITON_INTERPRET=1 is set

A layer is convolution, tanh and the mean of each 2 x 2: what the other two cost depends on how it is convolved. C1 is
on images that all lanes share and that want no gradient, C3 on maps of each lane's own. Every run begins with the
check. Medians; the sides take turns. Axes: K lanes, B batch, C channels, H, W; O outputs; h, w the convolution's rows
and columns; G = 1 for shared images, else K.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from benchmarks.epoch import processor
from hpsearch.models.lane_convolution import squashed_convolution

KERNEL = 5
CPU_LANES, GPU_LANES = (1, 4, 16), (1, 4, 16, 64, 256)
BATCH_SIZES = (64, 256)
ROUNDS = 7  # in which the sides take turns
LEAST_SECONDS = 0.01  # of one timing: short work is repeated
AXES = "KBCHW"

# Shares of the largest value. Sums of some hundred products in float32 err by 1e-7 to 1e-6 of it, a wrong term by 1e-2
# or more. TF32 keeps ten bits of each factor: cut off, that is at most 2e-3 of a product; emulated, up to 1.3e-3 here.
TOLERANCE, TF32_TOLERANCE = 1e-5, 2e-3


@dataclass(frozen=True)
class Layer:
    """Convolution, tanh and pooling of square images."""

    name: str
    channels: int
    size: int  # H and W, pixels
    outputs: int
    shared: bool  # by all lanes: the images, whose gradient nobody wants

    @property
    def pooled_size(self) -> int:
        return (self.size - KERNEL + 1) // 2

    def flop(self, num_lanes: int, batch_size: int) -> int:
        """Of the products forward, for the weights' gradient and, if it is wanted, for the images'."""
        products = num_lanes * batch_size * self.outputs * 4 * self.pooled_size**2 * self.channels * KERNEL**2
        return 2 * products * (2 if self.shared else 3)

    def bytes(self, num_lanes: int, batch_size: int) -> int:
        """That must move: images read twice, pooled outputs written, their gradient read; the same of weights."""
        images = batch_size * self.channels * self.size**2 * (1 if self.shared else num_lanes)
        outputs = num_lanes * batch_size * self.outputs * self.pooled_size**2
        weights = num_lanes * self.outputs * (self.channels * KERNEL**2 + 1)
        return 4 * (images * (2 if self.shared else 3) + 2 * outputs + weights * (2 if self.shared else 3))


LAYERS = (Layer("C1", 3, 32, 6, shared=True), Layer("C3", 6, 14, 16, shared=False))


@dataclass(frozen=True)
class Example:
    """images (G, B, C, H, W), weight (K, O, C, 5, 5), bias (K, O), gradient of the outputs (K, B, O, h/2, w/2)."""

    images: Tensor
    weight: Tensor
    bias: Tensor
    gradient: Tensor

    def run(self, side: "Side") -> tuple[Tensor, ...]:
        """The outputs, and the gradients of weight, bias and, if they want one, images."""
        outputs = side.forward(self.images, self.weight, self.bias)
        wanted = [tensor for tensor in (self.weight, self.bias, self.images) if tensor.requires_grad]
        return outputs.detach(), *torch.autograd.grad(outputs, wanted, self.gradient)

    def double(self) -> "Example":
        tensors = (self.images, self.weight, self.bias, self.gradient)
        return Example(*(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors))


@dataclass(frozen=True)
class Side:
    """A way to compute (G, B, C, H, W), (K, O, C, 5, 5), (K, O) -> (K, B, O, h/2, w/2).

    `order` is that of the axes in memory, of images and outputs: what one layer gives is what the next one takes.
    """

    name: str
    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    order: str


def alone(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer of one lane."""
    return pooled(functional.conv2d(images, weight, bias).tanh())


def pooled(maps: Tensor) -> Tensor:
    return functional.avg_pool2d(maps, 2)


def separate(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer of each lane; the outputs are stacked, which costs a copy."""
    lanes = zip(images.expand(len(weight), -1, -1, -1, -1).unbind(), weight.unbind(), bias.unbind(), strict=True)
    return torch.stack([alone(*lane) for lane in lanes])


def vmapped(images: Tensor, weight: Tensor, bias: Tensor, layer: Callable[..., Tensor] = alone) -> Tensor:
    """Of torch's layer: `grouped`, the bias added afterwards, and copies of maps and images from one order to another.

    With `squashed_convolution` it is what lanes on a GPU do: the kernels of hpsearch/models/convolution.cu.
    """
    if len(images) == 1:
        shared: Tensor = vmap(layer, in_dims=(None, 0, 0))(images[0], weight, bias)
        return shared
    own: Tensor = vmap(layer)(images, weight, bias)
    return own


def grouped(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One convolution: K groups of O outputs or, for shared images, K O outputs."""
    maps = images.transpose(0, 1).flatten(1, 2)  # (B, G C, H, W)
    outputs = pooled(functional.conv2d(maps, weight.flatten(0, 1), bias.flatten(), groups=len(images)).tanh())
    return outputs.view(len(outputs), *bias.shape, *outputs.shape[2:]).transpose(0, 1)


def unfolded(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Patches (G, C 5 5, B h w), for shared images once for all lanes, and one matrix product for each of the G.

    Views and one copy, because on a GPU functional.unfold starts a kernel for each image.
    """
    patches = images.unfold(3, KERNEL, 1).unfold(4, KERNEL, 1)  # (G, B, C, h, w, 5, 5)
    num_groups, batch_size, _, h, w = patches.shape[:5]
    columns = patches.permute(0, 2, 5, 6, 1, 3, 4).reshape(num_groups, -1, batch_size * h * w)
    rows = weight.reshape(num_groups, -1, columns.shape[1])  # (G, O or K O, C 5 5)
    outputs = torch.baddbmm(bias.reshape(num_groups, -1, 1), rows, columns).tanh()
    return pooled(outputs.view(-1, batch_size, h, w)).view(*bias.shape, batch_size, h // 2, w // 2).transpose(1, 2)


def triton(precision: str, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The kernels of triton_convolution.py."""
    from benchmarks.triton_convolution import PooledConvolution

    num_groups = len(images)
    by_group = weight.reshape(num_groups, -1, *weight.shape[2:]), bias.reshape(num_groups, -1)  # (G, O or K O, ...)
    outputs: Tensor = PooledConvolution.apply(images.transpose(0, 1), *by_group, precision)  # (B, G, O or K O, ...)
    return outputs.view(len(outputs), *bias.shape, *outputs.shape[3:]).transpose(0, 1)


SEPARATE = Side("separate", separate, "KBCHW")


def all_sides(*, with_triton: bool, with_cuda: bool = False, tf32: bool = False) -> list[Side]:
    """The first is the one that the others are compared with."""
    sides = [
        Side("vmap", vmapped, "KBCHW"),
        Side("grouped", grouped, "BKCHW"),
        Side("grouped, channels last", grouped, "BHWKC"),
        SEPARATE,
        Side("unfold", unfolded, "KCBHW"),
    ]
    if with_cuda:
        sides.append(Side("own kernels", partial(vmapped, layer=squashed_convolution), "KBCHW"))
    if with_triton:
        sides.append(Side("triton", partial(triton, "tf32" if tf32 else "ieee"), "BKCHW"))
    return sides


def example(layer: Layer, num_lanes: int, batch_size: int, order: str, device: str) -> Example:
    """Random numbers, the same for every order; weights are of a size that leaves tanh its slope."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    num_images = 1 if layer.shared else num_lanes
    images = normal(num_images, batch_size, layer.channels, layer.size, layer.size)
    weight = normal(num_lanes, layer.outputs, layer.channels, KERNEL, KERNEL) / (KERNEL * layer.channels**0.5)
    bias = normal(num_lanes, layer.outputs)
    gradient = normal(num_lanes, batch_size, layer.outputs, layer.pooled_size, layer.pooled_size)
    leaf = laid_out(images, order).requires_grad_(not layer.shared)
    return Example(leaf, weight.requires_grad_(), bias.requires_grad_(), laid_out(gradient, order))


def laid_out(maps: Tensor, order: str) -> Tensor:
    """The same (K, B, C, H, W), with its axes in another order in memory."""
    stored = maps.permute([AXES.index(axis) for axis in order]).contiguous()
    return stored.permute([order.index(axis) for axis in AXES])


def error(side: Side, layer: Layer, num_lanes: int, batch_size: int, device: str = "cpu") -> float:
    """The largest difference of outputs and gradients from conv2d in float64, each over its largest value."""
    given = example(layer, num_lanes, batch_size, side.order, device)
    pairs = zip(given.run(side), given.double().run(SEPARATE), strict=True)
    errors = [(found - exact).abs().max() / exact.abs().max() for found, exact in pairs]
    return float(torch.stack(errors).max())  # NaN, if there is one


def check(sides: list[Side], device: str, tolerance: float) -> list[Side]:
    """Every side on a few small cases; prints its errors, and gives those whose errors are small enough."""
    wrong = set[Side]()
    for layer in LAYERS:
        for side in sides:
            errors = [error(side, layer, *sizes, device) for sizes in ((1, 3), (3, 2), (11, 1))]
            print(f"{layer.name} {side.name:24s}errors {' '.join(f'{one:.1e}' for one in errors)}")
            if not all(one <= tolerance for one in errors):
                wrong.add(side)
    return [side for side in sides if side not in wrong]


def measure(sides: list[Side], layer: Layer, num_lanes: int, batch_size: int, device: str) -> dict[Side, list[float]]:
    """Seconds of forward and backward of each side: as called from Python and, on a GPU, as a CUDA graph."""
    works: dict[Side, list[Callable[[], object]]] = {}
    for side in sides:
        work = partial(example(layer, num_lanes, batch_size, side.order, device).run, side)
        works[side] = [work] if device == "cpu" else [work, captured(work)]
    found: dict[Side, list[list[float]]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, several in works.items():
            found[side].append([seconds(work, device) for work in several])
    return {side: [statistics.median(times) for times in zip(*rounds, strict=True)] for side, rounds in found.items()}


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """The work as a CUDA graph: what the GPU itself needs, however long Python and the launches take."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    once = of_calls(work, 1, device)
    num_calls = int(LEAST_SECONDS / once)
    return of_calls(work, num_calls, device) / num_calls if num_calls > 1 else once


def of_calls(work: Callable[[], object], num_calls: int, device: str) -> float:
    """Seconds of so many calls in a row, on a GPU by its own clock."""
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(num_calls):
            work()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(num_calls):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def peaks(device: str) -> tuple[float, float]:
    """FLOP per second of a large matrix product, bytes per second of a large copy; the best of many."""
    size, length = (1024, 2**24) if device == "cpu" else (4096, 2**27)
    square, source = torch.randn(size, size, device=device), torch.zeros(length, device=device)
    target = torch.empty_like(source)
    product = min(seconds(lambda: square @ square, device) for _ in range(20))
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(20))
    return 2 * size**3 / product, 2 * 4 * length / copy


def show(
    found: dict[Side, list[float]], layer: Layer, num_lanes: int, batch_size: int, rates: tuple[float, ...]
) -> None:
    """A line for each side. What follows the microseconds of a step is of the graph, where there is one."""
    flop = layer.flop(num_lanes, batch_size)
    arithmetic, memory = flop / rates[0], layer.bytes(num_lanes, batch_size) / rates[1]
    bound = max(arithmetic, memory)
    kind = "arithmetic" if arithmetic > memory else "memory"
    print(f"\n{layer.name}, {num_lanes} lanes, batch {batch_size}; bound {bound * 1e6:.1f} us by {kind}")
    print(f"{'':24s}{'us':>10s}{'graph, us':>11s}{'ns/lane/image':>15s}{'ratio':>7s}{'GFLOP/s':>9s}{'of bound':>9s}")
    first = next(iter(found.values()))[-1]
    for side, (eager, *graph) in found.items():
        best = graph[0] if graph else eager
        times = f"{eager * 1e6:10.1f}{best * 1e6:11.1f}" if graph else f"{eager * 1e6:10.1f}{'':11s}"
        share = f"{flop / best / 1e9:9,.0f}{bound / best:9.1%}"
        print(f"{side.name:24s}{times}{best * 1e9 / num_lanes / batch_size:15.1f}{first / best:7.2f}{share}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="LeNet-5's convolutions in lanes: vmap, unfold, Triton")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tf32", action="store_true", help="products of all sides in TF32, on a GPU")
    parser.add_argument(
        "--cudnn-search", action="store_true", help="let cuDNN try its kernels; it keeps them a process long"
    )
    parser.add_argument("--check", action="store_true", help="compare the results, time nothing")
    parser.add_argument("--lanes", nargs="+", type=int, help="default: 1 4 16, on a GPU also 64 256")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    arguments = parser.parse_args()
    device, on_gpu = arguments.device, arguments.device == "cuda"
    torch.set_num_threads(1)  # two threads would wait for one another when other programs run
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    torch.backends.cudnn.benchmark = arguments.cudnn_search
    name = torch.cuda.get_device_name() if on_gpu else f"{processor()}, load {os.getloadavg()[0]:.1f}"
    print(f"{date.today()}, {name}; Python {platform.python_version()}, torch {torch.__version__}")
    interpreted = arguments.check and os.environ.get("TRITON_INTERPRET") == "1"
    sides = all_sides(with_triton=on_gpu or interpreted, with_cuda=on_gpu, tf32=arguments.tf32)
    tolerance = TF32_TOLERANCE if arguments.tf32 else TOLERANCE
    right = check(sides, device, tolerance)
    if arguments.check:
        sys.exit(None if right == sides else f"a side is wrong: an error is above {tolerance:.0e}")
    if right != sides:
        print(f"left out, as an error is above {tolerance:.0e}: {', '.join(s.name for s in sides if s not in right)}")
    rates = peaks(device)
    print(f"{rates[0] / 1e9:,.0f} GFLOP/s in a product, {rates[1] / 1e9:,.0f} GB/s in a copy")
    for layer in LAYERS:
        for batch_size in arguments.batch_sizes:
            for num_lanes in arguments.lanes or (GPU_LANES if on_gpu else CPU_LANES):
                show(measure(right, layer, num_lanes, batch_size, device), layer, num_lanes, batch_size, rates)


if __name__ == "__main__":
    main()
