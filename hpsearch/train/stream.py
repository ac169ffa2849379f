"""The stream of training batches: order and augmentation as pure functions of (stream seed, epoch, block)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from hpsearch.recipe import fold
from hpsearch.train.augment import augment, draw
from hpsearch.train.device_data import DeviceData, send

BLOCK = 2048  # images augmented at once, about: a whole number of batches


@dataclass(frozen=True)
class Stream:
    """Which batches a trial sees; trials with the same stream see the same ones."""

    augmentation: str
    batch_size: int
    seed: int

    def steps_per_epoch(self, data: DeviceData) -> int:
        """The last batch may be short; it counts."""
        return ceil(data.num_images / self.batch_size)

    def blocks(self, data: DeviceData, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 (N, C, H, W) and labels (N,) of epoch 0, 1, ..., a whole number of batches at a time.

        Images are valid until the next block is taken.
        """
        generator = torch.Generator().manual_seed(fold(self.seed, epoch))
        order = send(torch.randperm(data.num_images, generator=generator), data.device)
        parts = torch.split(order, block_size(self.batch_size))
        space = torch.empty(len(parts[0]), *data.input_shape, device=data.device)  # fresh memory for each is slower
        for number, rows in enumerate(parts):
            seed = fold(self.seed, epoch, number)
            draws = draw(self.augmentation, len(rows), seed, data.device)
            raw = data.train_images.index_select(0, rows)  # many times faster than train_images[rows]
            images = augment(self.augmentation, raw, draws, data.mean, data.std, out=space[: len(rows)])
            yield images, data.train_labels[rows]

    def batches(self, data: DeviceData, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `blocks`, one batch at a time: images (B, C, H, W), labels (B,)."""
        for images, labels in self.blocks(data, epoch):
            yield from zip(torch.split(images, self.batch_size), torch.split(labels, self.batch_size), strict=True)


def block_size(batch_size: int) -> int:
    """Images of a block: streams of one seed whose blocks are equally large give the same images in the same order."""
    return max(1, BLOCK // batch_size) * batch_size
