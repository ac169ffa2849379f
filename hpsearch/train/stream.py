"""The stream of training batches: order and augmentation as pure functions of (stream seed, epoch, block)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from hpsearch.recipe import fold
from hpsearch.train.augment import augment, draw
from hpsearch.train.device_data import DeviceData

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

    def batches(self, data: DeviceData, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 (B, C, H, W) and labels (B,) of epoch 0, 1, ...; images are valid until the next is taken."""
        generator = torch.Generator().manual_seed(fold(self.seed, epoch))
        order = torch.randperm(data.num_images, generator=generator).to(data.device)
        parts = torch.split(order, max(1, BLOCK // self.batch_size) * self.batch_size)
        space = torch.empty(len(parts[0]), *data.input_shape, device=data.device)  # fresh memory for each is slower
        for number, rows in enumerate(parts):
            seed = fold(self.seed, epoch, number)
            draws = draw(self.augmentation, len(rows), seed, data.device)
            raw = data.train_images.index_select(0, rows)  # many times faster than train_images[rows]
            images = augment(self.augmentation, raw, draws, data.mean, data.std, out=space[: len(rows)])
            labels = data.train_labels[rows]
            yield from zip(torch.split(images, self.batch_size), torch.split(labels, self.batch_size), strict=True)
