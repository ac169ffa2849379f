"""The optimizers of `optimizers.py` for K trials at once: parameters (K, P), numbers (K,), no branch on any of them.

On a GPU each is one kernel of update.cu, because memory is what a step waits for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

import torch
from torch import Tensor

from hpsearch.kernels import Kernels, available
from hpsearch.recipe import Recipe
from hpsearch.train.optimizers import ADAM, CLIP_EPSILON, EPSILON, SECOND_BETA, SGD

THREADS, EACH = 256, 4  # of a block, and the numbers of a thread


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, each (K, 1): learning rate, momentum or first beta, decay, divisor, step from 1 on."""

    rate: Tensor
    momentum: Tensor
    weight_decay: Tensor
    divisor: Tensor
    step: Tensor


@dataclass(frozen=True)
class Numbers:
    """What lanes keep through an epoch (K,): weight decay, and the largest gradient norm (infinite: not clipped)."""

    weight_decay: Tensor
    clip_norm: Tensor

    @classmethod
    def of(cls, recipes: Sequence[Recipe | None], device: torch.device) -> "Numbers":
        """Those of the lanes' recipes; None is a free lane."""
        decays = [recipe.weight_decay if recipe else 0.0 for recipe in recipes]
        clips = [(recipe.clip_norm if recipe else 0.0) or torch.inf for recipe in recipes]
        return cls(torch.tensor(decays, device=device), torch.tensor(clips, device=device))

    def take(self, others: "Numbers") -> None:
        """Become the others, in place: a graph goes on reading the same memory."""
        self.weight_decay.copy_(others.weight_decay)
        self.clip_norm.copy_(others.clip_norm)

    def at(self, rate: Tensor, momentum: Tensor, steps: Tensor, norm: Tensor) -> StepNumbers:
        """The numbers of a step from what changes with it (K,); `norm` is that of the gradients."""
        divisor = ((norm + CLIP_EPSILON) / self.clip_norm).clamp(min=1.0)
        columns = (rate, momentum, self.weight_decay, divisor, steps.double() + 1)
        return StepNumbers(*(column[:, None] for column in columns))


@dataclass(frozen=True)
class LaneOptimizer:
    """`apply` changes parameters and buffers (K, P) in place, and may change the gradients (K, P)."""

    buffers: tuple[str, ...]
    apply: Callable[[Tensor, Tensor, Mapping[str, Tensor], StepNumbers], None]


def sgd(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    """SGD with momentum; weight decay is an L2 penalty."""
    if _by_kernel(parameters):
        own = (numbers.rate, numbers.momentum, numbers.weight_decay, numbers.divisor)
        _launch("sgd", (parameters, gradients, buffers["momentum"]), own)
        return
    gradients.div_(numbers.divisor).addcmul_(parameters, numbers.weight_decay)
    buffers["momentum"].mul_(numbers.momentum).add_(gradients)
    parameters.addcmul_(buffers["momentum"], -numbers.rate)


def adam(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    """Adam; weight decay is an L2 penalty."""
    if _by_kernel(parameters):
        _adam_kernel(parameters, gradients, buffers, numbers, numbers.weight_decay, torch.ones_like(numbers.rate))
        return
    gradients.div_(numbers.divisor).addcmul_(parameters, numbers.weight_decay)
    _adam_step(parameters, gradients, buffers, numbers)


def adamw(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    """Adam with decoupled weight decay."""
    keep = 1 - numbers.rate * numbers.weight_decay
    if _by_kernel(parameters):
        _adam_kernel(parameters, gradients, buffers, numbers, torch.zeros_like(keep), keep)
        return
    gradients.div_(numbers.divisor)
    parameters.mul_(keep)
    _adam_step(parameters, gradients, buffers, numbers)


# The same names and buffers as OPTIMIZERS.
LANE_OPTIMIZERS = {
    "sgd": LaneOptimizer(SGD.buffers, sgd),
    "adam": LaneOptimizer(ADAM.buffers, adam),
    "adamw": LaneOptimizer(ADAM.buffers, adamw),
}


def _adam_step(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    mean, square = buffers["mean"], buffers["square"]
    mean.lerp_(gradients, (1 - numbers.momentum).expand_as(gradients))
    square.mul_(SECOND_BETA).addcmul_(gradients, gradients, value=1 - SECOND_BETA)
    rate, root = _corrected(numbers)
    scale = (square.sqrt() / root).add_(EPSILON)
    parameters.addcdiv_(mean * -rate, scale)


def _corrected(numbers: StepNumbers) -> tuple[Tensor, Tensor]:
    """Adam's rate and the root of its second moment, (K, 1) each, corrected for the bias of the first steps."""
    first = (1 - numbers.momentum.double() ** numbers.step).float()
    return numbers.rate / first, (1 - SECOND_BETA**numbers.step).sqrt().float()


def _by_kernel(parameters: Tensor) -> bool:
    return parameters.is_cuda and available()


def _adam_kernel(
    parameters: Tensor,
    gradients: Tensor,
    buffers: Mapping[str, Tensor],
    numbers: StepNumbers,
    weight_decay: Tensor,
    keep: Tensor,
) -> None:
    rate, root = _corrected(numbers)
    own = (rate, numbers.momentum, weight_decay, numbers.divisor, keep, root)
    rows = (parameters, gradients, buffers["mean"], buffers["square"])
    _launch("adam", rows, own, SECOND_BETA, 1 - SECOND_BETA, EPSILON)


def _launch(name: str, rows: Sequence[Tensor], numbers: Sequence[Tensor], *constants: float) -> None:
    num_lanes, size = rows[0].shape
    blocks = (ceil(size / (THREADS * EACH)), num_lanes, 1)
    kernels = _kernels(rows[0].device)
    kernels(name, blocks, THREADS, *rows, *(one.contiguous() for one in numbers), size, *constants)


@cache
def _kernels(device: torch.device) -> Kernels:
    with torch.cuda.device(device):
        return Kernels("hpsearch.train", "update.cu", {"EACH": EACH})
