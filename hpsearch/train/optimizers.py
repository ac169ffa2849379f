"""Optimizers as functions that update parameters in place; all they keep is buffers shaped like the parameters.

torch.optim's own functions do the arithmetic in their fused form: one pass over the memory, which divides the
gradients (clipping) on the way. For 3 million parameters on a CPU it takes 1.3 ms instead of 2.3 (one thread).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adam import adam as torch_adam
from torch.optim.sgd import sgd as torch_sgd

EPSILON = 1e-8  # Adam: added to the root; torch's default
SECOND_BETA = 0.999  # Adam: torch's default
CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
SMALLEST_SCALE = 2.0**-10  # of a buffer of FactoredSGD: far from the limits of float32; reached every 65 steps at 0.9

Buffers = Mapping[str, list[Tensor]]  # name -> one tensor for each parameter, zero before the first step


@dataclass(frozen=True)
class Update:
    """The numbers of one step."""

    step: int  # 0 for the first
    rate: float
    momentum: float  # of SGD; Adam's first beta
    weight_decay: float
    divisor: Tensor | None = None  # (), see `clip_divisor`


@dataclass(frozen=True)
class Optimizer:
    """`apply` changes parameters and buffers in place, and may change the gradients."""

    buffers: tuple[str, ...]
    apply: Callable[[list[Tensor], list[Tensor], Buffers, Update], None]


def sgd(parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, update: Update) -> None:
    """SGD with momentum; weight decay is an L2 penalty."""
    torch_sgd(
        parameters,
        gradients,
        list(buffers["momentum"]),  # a buffer of zeros gives the same first step as torch's missing one
        fused=True,
        grad_scale=update.divisor,
        weight_decay=update.weight_decay,
        momentum=update.momentum,
        lr=update.rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


def adam(parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, update: Update) -> None:
    """Adam; weight decay is an L2 penalty."""
    _adam(parameters, gradients, buffers, update, decoupled=False)


def adamw(parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, update: Update) -> None:
    """Adam with decoupled weight decay."""
    _adam(parameters, gradients, buffers, update, decoupled=True)


def factored_norm(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The norm () of the sum of products g^T x, from factors g (B, O) and x (B, I), without the products."""
    gradient, inputs = joined(factors)
    return ((inputs @ inputs.T) * (gradient @ gradient.T)).sum().clamp(min=0.0).sqrt()


def joined(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of the summed gradient: of a layer that was used once, its own."""
    if len(factors) == 1:
        return factors[0]
    return torch.cat([gradient for gradient, _ in factors]), torch.cat([inputs for _, inputs in factors])


@dataclass
class FactoredSGD:
    """`sgd` of weights (O, I) whose gradients are given by their factors; the gradients themselves are never stored.

    The momentum is `scale` times its buffer: its decay costs one product of two numbers, no pass over the memory.
    """

    weights: list[Tensor]
    buffers: list[Tensor]  # one for each weight
    scale: float = 1.0

    def apply(self, factors: Sequence[Sequence[tuple[Tensor, Tensor]]], update: Update) -> None:
        """One step from the factors of each weight's gradient."""
        self.scale *= update.momentum
        if self.scale < SMALLEST_SCALE:
            self.settle()
        for weight, buffer, pairs in zip(self.weights, self.buffers, factors, strict=True):
            gradient, inputs = joined(pairs)
            gradient = gradient / (self.scale if update.divisor is None else update.divisor * self.scale)
            buffer.addmm_(gradient.T, inputs)
            if update.weight_decay:
                buffer.add_(weight, alpha=update.weight_decay / self.scale)
            weight.add_(buffer, alpha=-update.rate * self.scale)

    def settle(self) -> None:
        """Make the buffers the momentum itself, as every state holds it."""
        for buffer in self.buffers:
            buffer.mul_(self.scale)
        self.scale = 1.0


SGD = Optimizer(("momentum",), sgd)
ADAM = Optimizer(("mean", "square"), adam)
ADAMW = Optimizer(("mean", "square"), adamw)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm () of all gradients together."""
    return get_total_norm(gradients)


def clip_divisor(norm: Tensor, clip_norm: float) -> Tensor:
    """What gradients of this norm () are divided by, so that it becomes `clip_norm` at most."""
    return ((norm + CLIP_EPSILON) / clip_norm).clamp(min=1.0)


def _adam(
    parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, update: Update, *, decoupled: bool
) -> None:
    counts = torch.full((len(parameters),), float(update.step), device=parameters[0].device)
    torch_adam(
        parameters,
        gradients,
        buffers["mean"],
        buffers["square"],
        [],
        list(counts.unbind()),  # torch adds 1
        fused=True,
        grad_scale=update.divisor,
        decoupled_weight_decay=decoupled,
        amsgrad=False,
        beta1=update.momentum,
        beta2=SECOND_BETA,
        lr=update.rate,
        weight_decay=update.weight_decay,
        eps=EPSILON,
        maximize=False,
    )
