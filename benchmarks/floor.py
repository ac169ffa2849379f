"""The least time that an epoch can take on a device: the arithmetic at its peak rate, or the memory traffic at its own.

What a step must move: weights are read by the forward and by the backward pass; a gradient is written, and read again
once its norm is known; weights and momentum are read and written. What backward needs of the forward pass is written
and read once. The images are augmented once and read twice, for all lanes together. A cache can save some of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.epoch import NUM_CLASSES, NUM_TRAIN, recipe
from hpsearch.models.build import build_model

NUM_VALIDATION = 5_000
INPUT_SHAPE = (3, 32, 32)
WEIGHT_PASSES = 8  # reads and writes of one number for each weight in a step, as above
SQUARE = {"cpu": 1024, "cuda": 8192}  # rows of the matrices whose product gives the peak rate
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes whose copy gives the bandwidth


@dataclass(frozen=True)
class Peaks:
    """FLOP per second in large matrix products, in float32 and (on a GPU) TF32, and bytes per second in a copy."""

    float32: float
    tf32: float | None
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """One training step: FLOP and bytes for each lane, bytes for all lanes; FLOP of validating one image."""

    num_steps: int
    flop: int
    lane_bytes: int
    shared_bytes: int
    validation_flop: float

    def seconds(self, num_lanes: int, flops: float, bandwidth: float) -> float:
        """The floor of an epoch; `flops` is FLOP per second, `bandwidth` bytes per second."""
        arithmetic = (self.num_steps * self.flop + NUM_VALIDATION * self.validation_flop) * num_lanes / flops
        traffic = self.num_steps * (self.lane_bytes * num_lanes + self.shared_bytes) / bandwidth
        return max(arithmetic, traffic)


def count(model: str, batch_size: int) -> Work:
    """What the recipe's step costs, counted on a CPU."""
    network = build_model(replace(recipe(model, 1), batch_size=batch_size), INPUT_SHAPE, NUM_CLASSES)
    images, labels = torch.zeros(batch_size, *INPUT_SHAPE), torch.zeros(batch_size, dtype=torch.long)
    own = {parameter.data_ptr() for parameter in network.parameters()} | {images.data_ptr()}
    kept: dict[int, int] = {}  # bytes of what backward needs, by address

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = max(tensor.nbytes, kept.get(tensor.data_ptr(), 0))
        return tensor

    with FlopCounterMode(display=False) as training:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as validation, torch.no_grad():
        network(images)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return Work(
        num_steps=ceil(NUM_TRAIN / batch_size),
        flop=training.get_total_flops(),
        lane_bytes=WEIGHT_PASSES * weights + 2 * sum(kept.values()),
        shared_bytes=3 * images.nbytes + images.numel(),  # uint8 read; float32 written, and read twice
        validation_flop=validation.get_total_flops() / batch_size,
    )


def measure(device: torch.device) -> Peaks:
    """The device's own peaks, the best of several tries; afterwards `set_precision` is called for."""
    rows, num_bytes = SQUARE[device.type], COPIED[device.type]
    square = torch.randn(rows, rows, device=device)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = 2 * rows**3
    set_precision(tf32=False)
    exact = product / _best(lambda: square @ square, device)
    set_precision(tf32=True)
    tf32 = product / _best(lambda: square @ square, device) if device.type == "cuda" else None
    return Peaks(exact, tf32, 2 * num_bytes / _best(lambda: target.copy_(source), device))


def set_precision(*, tf32: bool) -> None:
    """From now on products and convolutions on a GPU are in TF32, or in float32."""
    backends: Any = torch.backends
    for setting in (backends.cuda.matmul, backends.cudnn.conv):
        setting.fp32_precision = "tf32" if tf32 else "ieee"


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the best of ten runs, the first not counted."""
    found = []
    for _ in range(11):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
