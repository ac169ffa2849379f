"""A data set on the device that trains: uint8 tensors, and what it takes to normalise them."""

import gc
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor


class Arrays(Protocol):
    """What is needed of a `hpsearch.data.load.DataSet`; images uint8 (N, C, H, W), labels (N,)."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def train_images(self) -> Any: ...
    @property
    def train_labels(self) -> Any: ...
    @property
    def validation_images(self) -> Any: ...
    @property
    def validation_labels(self) -> Any: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


Blocks = list[tuple[Tensor, Tensor]]  # images float32 (N, C, H, W), labels (N,)


class Augmented:
    """Epochs of augmented images that stay on the device; what `Stream.blocks` keeps, and looks up."""

    def __init__(self) -> None:
        self.epochs: dict[Any, tuple[int, Blocks]] = {}  # by stream: number, blocks
        self.wanted = True  # until memory has run out
        self._used = False  # some have been made
        self._making: list[Blocks] = []  # of epochs that are being made, side by side

    @property
    def num_bytes(self) -> int:
        """Of memory that they hold."""
        kept = [blocks for _, blocks in self.epochs.values()]
        return sum(images.nbytes for blocks in (*kept, *self._making) for images, _ in blocks)

    @contextmanager
    def making(self, most: int) -> Iterator[Blocks | None]:
        """Where the blocks of one more epoch go; the oldest epochs make room, so that `most` stay with it.

        None while so many others are being made that there is no room.
        """
        room = most - len(self._making)
        if room <= 0:
            yield None
            return
        for oldest in list(self.epochs)[: max(0, len(self.epochs) - room + 1)]:
            del self.epochs[oldest]
        begun: Blocks = []
        self._used = True
        self._making.append(begun)
        try:
            yield begun
        finally:
            self._making = [blocks for blocks in self._making if blocks is not begun]

    def give_up(self) -> bool:
        """Hold nothing from now on; whether there was something, if only until an error cut off who made it."""
        held = self.wanted and self._used
        for begun in self._making:
            begun.clear()  # whoever makes it has this list, too
        self.epochs, self.wanted = {}, False
        return held


@dataclass(frozen=True)
class DeviceData:
    """Images uint8 (N, C, H, W), labels int64 (N,); mean and std per channel on the scale 0..1."""

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    augmented: Augmented = field(init=False, default_factory=Augmented, compare=False, repr=False)

    @property
    def device(self) -> torch.device:
        return self.train_images.device

    @property
    def num_images(self) -> int:
        """Images of the training part."""
        return len(self.train_labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def place(dataset: Arrays, device: torch.device | str) -> DeviceData:
    """The data set on the device; on a CPU the images stay in their memory map, which all workers share."""
    return DeviceData(
        _tensor(dataset.train_images, device),
        _tensor(dataset.train_labels, device).long(),
        _tensor(dataset.validation_images, device),
        _tensor(dataset.validation_labels, device).long(),
        tuple(dataset.mean),
        tuple(dataset.std),
        len(dataset.classes),
    )


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device; a GPU takes it from pinned memory when it gets there, and nobody waits for that."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers, or tuples of them, as a tensor that is made once for each device."""
    with torch.inference_mode(mode=False):  # it may be first asked for while validating
        return torch.tensor(values, device=device)


def has_room(data: DeviceData) -> bool:
    """Whether the device has memory for twice as many lanes."""
    if data.device.type != "cuda":
        return True
    torch.cuda.empty_cache()  # what is still reserved then belongs to recorded steps, and is free for nobody
    free, total = torch.cuda.mem_get_info(data.device)
    return free + data.augmented.num_bytes > total / 2


def let_go(error: Exception, device: torch.device) -> None:
    """Free what a failed step holds on the device: the exception's frames keep its activations and gradients alive."""
    for link in links(error):
        traceback.clear_frames(link.__traceback__)
    if device.type == "cuda":
        gc.collect()  # compiled and recorded programs are cycles
        with suppress(RuntimeError):  # torch 2.11 cannot after a recording that failed
            torch.cuda.empty_cache()


def links(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def make_room(error: Exception, data: DeviceData) -> bool:
    """`let_go`; augmented images make room too, for good. Whether there were any."""
    held = data.augmented.give_up()
    let_go(error, data.device)
    return held


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    # By torch, by cuBLAS and cuDNN, and by CUDA where torch calls it an AcceleratorError: the device is not broken.
    said = [
        *("DefaultCPUAllocator", "ALLOC_FAILED", "ALLOCATION_FAILED", "CUDA error: out of memory"),
        *("CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"),  # without memory for a handle
    ]
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in said)


def _tensor(array: Any, device: torch.device | str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes to them
        return torch.from_numpy(array).to(device)
