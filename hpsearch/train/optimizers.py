"""Optimizers as functions that update parameters in place: what torch.optim computes, with no state but tensors.

An optimizer is (parameters, gradients, buffers, step, rate, momentum, weight_decay, divisor) -> None; `buffers` holds
one list of tensors for each name in its `BUFFERS`. torch.optim's own functions do the work, in their fused form: one
pass over the memory, with the gradients divided by `divisor` (clipping) on the way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam
from torch.optim.sgd import sgd as torch_sgd

EPSILON = 1e-8  # Adam: added to the root, torch's default
SECOND_BETA = 0.999  # Adam: torch's default
CLIP_EPSILON = 1e-6  # clipping: as in torch.nn.utils.clip_grad_norm_

Tensors = list[Tensor]


@dataclass(frozen=True)
class Update:
    """The numbers of one step."""

    step: int  # 0 for the first
    rate: float
    momentum: float  # SGD momentum, or Adam's first beta
    weight_decay: float
    divisor: Tensor | None = None  # () float32: gradients are divided by it


class Sgd:
    """SGD with momentum."""

    BUFFERS = ("momentum",)

    @staticmethod
    def apply(parameters: Tensors, gradients: Tensors, buffers: Mapping[str, Tensors], update: Update) -> None:
        torch_sgd(
            parameters,
            gradients,
            buffers["momentum"],  # type: ignore[arg-type]
            fused=True,
            grad_scale=update.divisor,
            weight_decay=update.weight_decay,
            momentum=update.momentum,
            lr=update.rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class Adam:
    """Adam; weight decay is an L2 penalty."""

    BUFFERS = ("mean", "square")
    DECOUPLED = False

    @classmethod
    def apply(cls, parameters: Tensors, gradients: Tensors, buffers: Mapping[str, Tensors], update: Update) -> None:
        count = torch.full((), float(update.step), device=parameters[0].device)
        torch_adam(
            parameters,
            gradients,
            buffers["mean"],
            buffers["square"],
            [],
            [count.clone() for _ in parameters],
            fused=True,
            grad_scale=update.divisor,
            decoupled_weight_decay=cls.DECOUPLED,
            amsgrad=False,
            beta1=update.momentum,
            beta2=SECOND_BETA,
            lr=update.rate,
            weight_decay=update.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    DECOUPLED = True


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm () of all gradients together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def clip_divisor(norm: Tensor, clip_norm: float) -> Tensor:
    """What gradients of this norm () are divided by, so that it becomes at most `clip_norm`."""
    return ((norm + CLIP_EPSILON) / clip_norm).clamp(min=1.0)
