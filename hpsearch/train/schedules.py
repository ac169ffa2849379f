"""Learning rate and momentum as pure functions of the step.

A schedule is `(step, recipe, steps_per_epoch) -> Setting`: step is 0 for the first update and may be a tensor of any
shape (float64), recipe gives rates and epochs. Rates equal those of torch.optim.lr_scheduler's class of that name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.errors import UsageError
from hpsearch.recipe import Recipe

WARM_UP_SHARE = 0.3  # onecycle: share of the steps in which the rate rises
HIGH_MOMENTUM, LOW_MOMENTUM = 0.95, 0.85  # onecycle: at the initial and at the peak rate
FINAL_DIVISOR = 1e4  # onecycle: the last rate is the initial one over this


@dataclass(frozen=True)
class Setting:
    """What a step trains with: learning rate, and momentum (SGD) or first beta (Adam); one value for each step."""

    rate: Tensor
    momentum: Tensor


Schedule = Callable[[Tensor, Recipe, int], Setting]


def constant(step: Tensor, recipe: Recipe, steps_per_epoch: int) -> Setting:
    """The initial rate throughout."""
    return Setting(torch.full_like(step, recipe.learning_rate), torch.full_like(step, recipe.momentum))


def cosine(step: Tensor, recipe: Recipe, steps_per_epoch: int) -> Setting:
    """Down to 0 along half a cosine, step by step; would be 0 at the step after the last."""
    share = step / (recipe.epochs * steps_per_epoch)
    return Setting(_descend(recipe.learning_rate, 0.0, share), torch.full_like(step, recipe.momentum))


def exponential(step: Tensor, recipe: Recipe, steps_per_epoch: int) -> Setting:
    """The rate is multiplied by `gamma` after every epoch."""
    epoch = torch.div(step, steps_per_epoch, rounding_mode="floor")
    return Setting(recipe.learning_rate * recipe.gamma**epoch, torch.full_like(step, recipe.momentum))


def onecycle(step: Tensor, recipe: Recipe, steps_per_epoch: int) -> Setting:
    """Up to the peak rate and down far below the initial one, along cosines; momentum goes the other way.

    Source: Smith and Topin, "Super-convergence", 2018, in the form of torch.optim.lr_scheduler.OneCycleLR.
    Raises UsageError if the recipe has no peak rate.
    """
    low, peak = recipe.learning_rate, recipe.peak_learning_rate
    if peak is None:
        raise UsageError("recipe: peak_learning_rate: is missing; scheduler onecycle needs it")
    last = recipe.epochs * steps_per_epoch - 1
    top = WARM_UP_SHARE * (last + 1) - 1  # the step at the peak; not a whole number, as in OneCycleLR
    rising = step / top
    falling = (step - top) / (last - top)
    rate = torch.where(step <= top, _descend(low, peak, rising), _descend(peak, low / FINAL_DIVISOR, falling))
    down, up = _descend(HIGH_MOMENTUM, LOW_MOMENTUM, rising), _descend(LOW_MOMENTUM, HIGH_MOMENTUM, falling)
    return Setting(rate, torch.where(step <= top, down, up))


def _descend(start: float, end: float, share: Tensor) -> Tensor:
    """From start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + torch.cos(math.pi * share))
