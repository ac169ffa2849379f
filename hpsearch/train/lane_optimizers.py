"""The optimizers of `optimizers.py` for K trials at once: parameters (K, P), numbers (K,), no branch on any of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.recipe import Recipe
from hpsearch.train.optimizers import ADAM, CLIP_EPSILON, EPSILON, SECOND_BETA, SGD


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
    gradients.div_(numbers.divisor).addcmul_(parameters, numbers.weight_decay)
    buffers["momentum"].mul_(numbers.momentum).add_(gradients)
    parameters.addcmul_(buffers["momentum"], -numbers.rate)


def adam(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    """Adam; weight decay is an L2 penalty."""
    gradients.div_(numbers.divisor).addcmul_(parameters, numbers.weight_decay)
    _adam_step(parameters, gradients, buffers, numbers)


def adamw(parameters: Tensor, gradients: Tensor, buffers: Mapping[str, Tensor], numbers: StepNumbers) -> None:
    """Adam with decoupled weight decay."""
    gradients.div_(numbers.divisor)
    parameters.mul_(1 - numbers.rate * numbers.weight_decay)
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
    first = (1 - numbers.momentum.double() ** numbers.step).float()  # bias corrections (K, 1)
    second = (1 - SECOND_BETA**numbers.step).sqrt().float()
    scale = (square.sqrt() / second).add_(EPSILON)
    parameters.addcdiv_(mean * (-numbers.rate / first), scale)
