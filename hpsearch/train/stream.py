"""The stream of training batches: order and augmentation as pure functions of (stream seed, epoch, block)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from hpsearch.recipe import fold
from hpsearch.train.augment import augment, draw
from hpsearch.train.device_data import DeviceData

BLOCK = 2048  # images augmented at once, about


@dataclass(frozen=True)
class Stream:
    """Which batches a trial sees; trials of the same stream can share them."""

    augmentation: str
    batch_size: int
    seed: int

    def steps_per_epoch(self, data: DeviceData) -> int:
        return ceil(len(data.train_labels) / self.batch_size)

    def blocks(self, data: DeviceData, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 (N, C, H, W) and labels (N,), block by block."""
        generator = torch.Generator().manual_seed(fold(self.seed, epoch))
        order = torch.randperm(len(data.train_labels), generator=generator).to(data.device)
        parts = order.split(max(1, BLOCK // self.batch_size) * self.batch_size)
        for number, rows in enumerate(parts):
            yield self._block(data, epoch, number, rows)

    def _block(self, data: DeviceData, epoch: int, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        draws = draw(self.augmentation, len(rows), fold(self.seed, epoch, number), data.device)
        images = augment(self.augmentation, data.train_images[rows], draws, data.mean, data.std)
        return images, data.train_labels[rows]
