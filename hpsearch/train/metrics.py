"""Sums over an epoch, kept on the device: nothing waits for it until the epoch ends."""

import torch
from torch import Tensor
from torch.nn import functional


class Sums:
    """Loss and hits over images, gradient norm over steps."""

    def __init__(self, device: torch.device) -> None:
        self.num_images = self.num_steps = 0
        self._totals = torch.zeros(3, device=device)  # loss * images, hits, norms

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, norm: Tensor) -> None:
        """One batch: its mean loss (), logits (B, k), labels (B,), gradient norm ()."""
        hits = (logits.argmax(1) == labels).sum()
        self._totals += torch.stack([loss * len(labels), hits, norm])
        self.num_images += len(labels)
        self.num_steps += 1

    def means(self) -> tuple[float, float, float]:
        """Loss and accuracy over the images, gradient norm over the steps."""
        loss, hits, norm = self._totals.tolist()
        return loss / self.num_images, hits / self.num_images, norm / self.num_steps


def evaluate(model: torch.nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses () and number of hits () of images (B, C, H, W)."""
    logits = model(images)
    return functional.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
