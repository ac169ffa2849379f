"""Sums over an epoch, kept on the device: nothing waits for it until the epoch ends."""

import torch
from torch import Tensor
from torch.nn import functional

from hpsearch.train.augment import normalise
from hpsearch.train.device_data import DeviceData, send
from hpsearch.train.precision import EVALUATION, multiplying
from hpsearch.train.randomness import steady

STEPS = 32  # whose logits are kept at most before they are reduced


VALIDATION_BATCH = 500  # images; only speed depends on it


class Sums:
    """Loss and hits over images, gradient norm over steps, for many steps at once: small operations are slow."""

    def __init__(self, device: torch.device) -> None:
        self.num_images = self.num_steps = 0
        self._totals = torch.zeros(3, device=device)  # loss * images, hits, norms
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor | float]] = []  # not in the totals yet

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, norm: Tensor | float) -> None:
        """One batch: its mean loss (), logits (B, k), labels (B,), gradient norm () or a number."""
        self._steps.append((loss.detach(), logits.detach(), labels, norm))
        self.num_images += len(labels)
        self.num_steps += 1
        if len(self._steps) == STEPS:
            self._reduce()

    def _reduce(self) -> None:
        losses, logits, labels, norms = zip(*self._steps, strict=True)
        sizes = send(torch.tensor([float(len(batch)) for batch in labels]), losses[0].device)
        sum_of_norms = torch.stack([torch.as_tensor(norm) for norm in norms]).sum()
        hits = (torch.cat(logits).argmax(1) == torch.cat(labels)).sum()
        self._totals += torch.stack([torch.stack(losses).float() @ sizes, hits, sum_of_norms])
        self._steps.clear()

    def means(self) -> tuple[float, float, float]:
        """Loss and accuracy over the images, gradient norm over the steps."""
        if self._steps:
            self._reduce()
        loss, hits, norm = self._totals.tolist()
        return loss / self.num_images, hits / self.num_images, norm / self.num_steps


def full_precision(logits: Tensor) -> Tensor:
    """In float32 at least: a network may end in half precision, where sums of losses and counts of hits are rounded."""
    return logits if logits.element_size() >= 4 else logits.float()


def evaluate(model: torch.nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses () and number of hits () of images (B, C, H, W)."""
    with multiplying(EVALUATION, images.device):
        logits = full_precision(model(images))
    return functional.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()


@torch.no_grad()
def predictions(model: torch.nn.Module, data: DeviceData) -> Tensor:
    """The class (N,) that each validation image is taken for."""
    model.eval()
    batches = torch.split(data.validation_images, VALIDATION_BATCH)
    with multiplying(EVALUATION, data.device), steady(model, data.device):
        found = [model(normalise(raw, data.mean, data.std)).argmax(1) for raw in batches]
    return torch.cat(found)
