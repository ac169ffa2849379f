"""SGD, Adam and AdamW for K trials at once, each lane with its own: parameters and moments (K, P), numbers (K,).

Which one a lane has is a number like the others, so that trials with different optimizers train in one program. On a
GPU a step is one kernel, update.cu, because memory is what it waits for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import ceil

import torch
from torch import Tensor

from hpsearch.kernels import Kernels, architecture, available, compiled
from hpsearch.recipe import Recipe
from hpsearch.train.optimizers import ADAM, CLIP_EPSILON, EPSILON, SECOND_BETA, SGD

BUFFERS = {"sgd": SGD.buffers, "adam": ADAM.buffers, "adamw": ADAM.buffers}  # what OPTIMIZERS call the moments
THREADS, EACH = 256, 4  # of a block, and the numbers of a thread


@dataclass(frozen=True)
class Moments:
    """What lanes remember (K, P): SGD's momentum in `first`, Adam's mean and square in both."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> "Moments":
        """Those before the first step."""
        return cls(torch.zeros_like(parameters), torch.zeros_like(parameters))

    def tensors(self) -> list[Tensor]:
        return [self.first, self.second]

    def clone(self) -> "Moments":
        return Moments(self.first.clone(), self.second.clone())


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, each (K, 1); Adam's rate and root are corrected for the bias of the first steps."""

    rate: Tensor
    momentum: Tensor  # Adam's first beta
    penalty: Tensor  # L2
    divisor: Tensor  # of the gradients, for clipping
    keep: Tensor  # what decoupled weight decay leaves of a parameter
    root: Tensor  # of what remains of the second moment's weights
    adaptive: Tensor  # bool: Adam or AdamW


@dataclass(frozen=True)
class Numbers:
    """What lanes keep through an epoch (K,): weight decay of either kind, the largest gradient norm, SGD or Adam.

    A norm that is infinite clips nothing.
    """

    penalty: Tensor
    decay: Tensor
    clip_norm: Tensor
    adaptive: Tensor

    @classmethod
    def of(cls, recipes: Sequence[Recipe | None], device: torch.device) -> "Numbers":
        """Those of the lanes' recipes; None is a free lane."""
        decays = [recipe.weight_decay if recipe else 0.0 for recipe in recipes]
        decoupled = [recipe is not None and recipe.optimizer == "adamw" for recipe in recipes]
        penalties = [0.0 if apart else decay for decay, apart in zip(decays, decoupled, strict=True)]
        decays = [decay if apart else 0.0 for decay, apart in zip(decays, decoupled, strict=True)]
        clips = [(recipe.clip_norm if recipe else 0.0) or torch.inf for recipe in recipes]
        adaptive = [recipe is not None and recipe.optimizer != "sgd" for recipe in recipes]
        numbers = [torch.tensor(one, dtype=torch.float32, device=device) for one in (penalties, decays, clips)]
        return cls(numbers[0], numbers[1], numbers[2], torch.tensor(adaptive, device=device))

    def take(self, others: "Numbers") -> None:
        """Become the others, in place: a graph goes on reading the same memory."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(others, field.name))

    def at(self, rate: Tensor, momentum: Tensor, steps: Tensor, norm: Tensor) -> StepNumbers:
        """The numbers of a step from what changes with it (K,); `norm` is that of the gradients."""
        step = steps.double() + 1
        corrected = torch.where(self.adaptive, rate / (1 - momentum.double() ** step).float(), rate)
        divisor = ((norm + CLIP_EPSILON) / self.clip_norm).clamp(min=1.0)
        root = (1 - SECOND_BETA**step).sqrt().float()
        columns = (corrected, momentum, self.penalty, divisor, 1 - rate * self.decay, root, self.adaptive)
        return StepNumbers(*(column[:, None] for column in columns))


def apply(parameters: Tensor, gradients: Tensor, moments: Moments, numbers: StepNumbers) -> None:
    """Change parameters and moments in place by one step; may change the gradients (K, P)."""
    if _by_kernel(parameters):
        num_lanes, size = parameters.shape
        blocks = (ceil(size / (THREADS * EACH)), num_lanes, 1)
        own = (getattr(numbers, field.name).contiguous() for field in fields(numbers))
        rows = (parameters, gradients, *moments.tensors())
        constants = (SECOND_BETA, 1 - SECOND_BETA, EPSILON)
        _kernels(parameters.device)("update", blocks, THREADS, *rows, *own, size, *constants)
        return
    gradients.div_(numbers.divisor).addcmul_(parameters, numbers.penalty)
    mean = moments.first.lerp(gradients, (1 - numbers.momentum).expand_as(gradients))
    moved = moments.first * numbers.momentum + gradients
    moments.first.copy_(torch.where(numbers.adaptive, mean, moved))
    square = (moments.second * SECOND_BETA).addcmul_(gradients, gradients, value=1 - SECOND_BETA)
    moments.second.copy_(torch.where(numbers.adaptive, square, moments.second))
    scale = torch.where(numbers.adaptive, (square.sqrt() / numbers.root).add_(EPSILON), 1.0)
    parameters.mul_(numbers.keep).addcdiv_(moments.first * -numbers.rate, scale)


def _by_kernel(parameters: Tensor) -> bool:
    return parameters.is_cuda and available(parameters.device)


@cache
def _kernels(device: torch.device) -> Kernels:
    return Kernels(compiled("hpsearch.train", "update.cu", {"EACH": EACH}, architecture(device)), device)
