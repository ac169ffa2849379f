"""The stream of training batches: order and augmentation as pure functions of (stream seed, epoch, block)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from hpsearch.interrupt import heed
from hpsearch.recipe import fold
from hpsearch.train.augment import augment, draw
from hpsearch.train.device_data import DeviceData, send

BLOCK = 2048  # images augmented at once, about: a whole number of batches
SHARE = 8  # of a GPU's memory, the part that augmented images may take at most

Block = tuple[Tensor, Tensor]  # images float32 (N, C, H, W), labels (N,)


@dataclass(frozen=True)
class Stream:
    """Which batches a trial sees; trials with the same stream see the same ones."""

    augmentation: str
    batch_size: int
    seed: int

    def steps_per_epoch(self, data: DeviceData) -> int:
        """The last batch may be short; it counts."""
        return ceil(data.num_images / self.batch_size)

    def blocks(self, data: DeviceData, epoch: int) -> Iterator[Block]:
        """Images float32 (N, C, H, W) and labels (N,) of epoch 0, 1, ..., a whole number of batches at a time.

        Images are valid until the next block is taken. On a GPU with room for it, the last epochs of some streams stay:
        programs of one stream, one after another, see the same images.
        """
        key = (self.augmentation, self.seed, block_size(self.batch_size))
        kept_epoch, blocks = data.augmented.epochs.get(key, (None, []))
        if kept_epoch == epoch:
            yield from blocks
            return
        if (most := _num_kept(data)) == 0:
            yield from self._made(data, epoch, fresh=False)
            return
        data.augmented.epochs.pop(key, None)
        with data.augmented.making(most) as begun:
            for block in self._made(data, epoch, fresh=begun is not None):
                if begun is not None and data.augmented.wanted:
                    begun.append(block)
                yield block
        if begun is not None and data.augmented.wanted:
            data.augmented.epochs[key] = epoch, begun

    def _made(self, data: DeviceData, epoch: int, *, fresh: bool) -> Iterator[Block]:
        """As `blocks`; `fresh`: each has memory of its own."""
        generator = torch.Generator().manual_seed(fold(self.seed, epoch))
        order = send(torch.randperm(data.num_images, generator=generator), data.device)
        parts = torch.split(order, block_size(self.batch_size))
        size = 0 if fresh else len(parts[0])  # where blocks need not stay, one space for all is faster
        space = torch.empty(size, *data.input_shape, device=data.device)
        for number, rows in enumerate(parts):
            heed()
            seed = fold(self.seed, epoch, number)
            draws = draw(self.augmentation, len(rows), seed, data.device)
            raw = data.train_images.index_select(0, rows)  # many times faster than train_images[rows]
            out = None if fresh else space[: len(rows)]
            images = augment(self.augmentation, raw, draws, data.mean, data.std, out=out)
            yield images, data.train_labels[rows]

    def batches(self, data: DeviceData, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `blocks`, one batch at a time: images (B, C, H, W), labels (B,)."""
        for images, labels in self.blocks(data, epoch):
            yield from zip(torch.split(images, self.batch_size), torch.split(labels, self.batch_size), strict=True)


def block_size(batch_size: int) -> int:
    """Images of a block: streams of one seed whose blocks are equally large give the same images in the same order."""
    return max(1, BLOCK // batch_size) * batch_size


def _num_kept(data: DeviceData) -> int:
    """How many augmented epochs may stay on the device."""
    if data.device.type != "cuda" or not data.augmented.wanted:
        return 0
    num_bytes = data.num_images * prod(data.input_shape) * 4
    return int(torch.cuda.get_device_properties(data.device).total_memory / SHARE / num_bytes)
