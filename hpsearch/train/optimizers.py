"""Optimizers as functions that update parameters in place; all they keep is buffers shaped like the parameters.

torch.optim's own functions do the arithmetic in their fused form: one pass over the memory, which divides the
gradients (clipping) on the way. For 3 million parameters on a CPU it takes 1.3 ms instead of 2.3 (one thread).

Norms and divisors are numbers on a CPU, and tensors on a GPU, where to read a number is to wait for all that was begun.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adam import adam as torch_adam
from torch.optim.sgd import sgd as torch_sgd

EPSILON = 1e-8  # Adam: added to the root; torch's default
SECOND_BETA = 0.999  # Adam: torch's default
CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
LARGEST_LOSS = 0.5  # of the parameters in a step of ScaledSGD, by weight decay alone
SMALLEST_SCALE = 2.0**-10  # of the buffers of ScaledSGD: far from the limits of float32; after 65 steps at 0.9

Buffers = Mapping[str, list[Tensor]]  # name -> one tensor for each parameter, zero before the first step


@dataclass(frozen=True)
class Update:
    """The numbers of one step."""

    step: int  # 0 for the first
    rate: float
    momentum: float  # of SGD; Adam's first beta
    weight_decay: float
    divisor: Tensor | float | None = None  # (), see `clip_divisor`

    @property
    def divisor_tensor(self) -> Tensor | None:
        """The divisor as torch's fused functions take it."""
        return torch.tensor(self.divisor) if isinstance(self.divisor, float) else self.divisor


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
        grad_scale=update.divisor_tensor,
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


def factored_norm(factors: Sequence[tuple[Tensor, Tensor]], similarity: Tensor | None = None) -> float:
    """The norm of the sum of products g^T x, from factors g (B, O) and x (B, I) on a CPU, without the products.

    `similarity` is x x^T (B, B) of the only factors, if it is there already.
    """
    gradient, inputs = joined(factors)
    similarity = inputs @ inputs.T if similarity is None else similarity
    square = torch.dot(similarity.view(-1), (gradient @ gradient.T).view(-1)).item()
    return math.sqrt(max(square, 0.0))  # rounding may take a norm of 0 below it


def joined(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of the summed gradient: of a layer that was used once, its own."""
    if len(factors) == 1:
        return factors[0]
    return torch.cat([gradient for gradient, _ in factors]), torch.cat([inputs for _, inputs in factors])


@dataclass
class ScaledSGD:
    """`sgd` on a CPU, in fewer and shorter passes over the memory; the last weights' gradients come as their factors.

    The momentum is `scale` times its buffer plus `decay` times the parameter: to make it smaller, or to add the weight
    decay to it, takes numbers alone. Products of factors go into the buffer at once and are stored nowhere else.
    """

    parameters: list[Tensor]
    buffers: list[Tensor]  # one for each parameter
    scale: float = 1.0
    decay: float = 0.0

    def apply(
        self, gradients: list[Tensor], factors: Sequence[Sequence[tuple[Tensor, Tensor]]], update: Update
    ) -> None:
        """One step from gradients of the first parameters, and the factors g (B, O) and x (B, I) of the others'."""
        self.scale *= update.momentum
        self.decay *= update.momentum
        if not SMALLEST_SCALE <= self.scale <= 1 / SMALLEST_SCALE:
            self.settle()
        share = 1 / (self.scale * float(1.0 if update.divisor is None else update.divisor))
        if gradients:
            torch._foreach_add_(self.buffers[: len(gradients)], gradients, alpha=share)
        for buffer, pairs in zip(self.buffers[len(gradients) :], factors, strict=True):
            gradient, inputs = joined(pairs)
            buffer.addmm_(gradient.T, inputs, alpha=share)
        self.decay += update.weight_decay
        if update.rate * self.decay > LARGEST_LOSS:
            self._gather()
        torch._fused_sgd_(
            self.parameters,
            self.buffers,
            [],
            weight_decay=self.decay / self.scale,
            momentum=0.0,
            lr=update.rate * self.scale,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        kept = 1 - update.rate * self.decay  # the momentum's part is of the parameters before the step
        self.scale /= kept
        self.decay /= kept

    def settle(self) -> None:
        """Make the buffers the momentum itself, as every state holds it."""
        self._gather()
        torch._foreach_mul_(self.buffers, self.scale)
        self.scale = 1.0

    def _gather(self) -> None:
        """Make the buffers the momentum but for its scale."""
        if self.decay:
            torch._foreach_add_(self.buffers, self.parameters, alpha=self.decay / self.scale)
            self.decay = 0.0


SGD = Optimizer(("momentum",), sgd)
ADAM = Optimizer(("mean", "square"), adam)
ADAMW = Optimizer(("mean", "square"), adamw)


def gradient_norm(gradients: list[Tensor], others: Iterable[float] = ()) -> Tensor | float:
    """The norm of all gradients together: a number on a CPU, else (); `others` are norms of more of them."""
    if gradients and gradients[0].device.type != "cpu":
        return get_total_norm(gradients)
    return math.hypot(*[torch.linalg.vector_norm(gradient).item() for gradient in gradients], *others)


def clip_divisor(norm: Tensor | float, clip_norm: float) -> Tensor | float:
    """What gradients of this norm are divided by, so that it becomes `clip_norm` at most; nan if it is nan."""
    divisor = (norm + CLIP_EPSILON) / clip_norm
    return divisor.clamp(min=1.0) if isinstance(divisor, Tensor) else max(divisor, 1.0)


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
        grad_scale=update.divisor_tensor,
        decoupled_weight_decay=decoupled,
        amsgrad=False,
        beta1=update.momentum,
        beta2=SECOND_BETA,
        lr=update.rate,
        weight_decay=update.weight_decay,
        eps=EPSILON,
        maximize=False,
    )
