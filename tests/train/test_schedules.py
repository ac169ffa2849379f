"""Every schedule equals torch's class of that name, step by step."""

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, OneCycleLR

from hpsearch.errors import UsageError
from hpsearch.recipe import Recipe
from hpsearch.train import SCHEDULES, schedules


def recipe(scheduler: str, epochs: int) -> Recipe:
    peak = 0.3 if scheduler == "onecycle" else None
    return Recipe(
        model="2lp", epochs=epochs, scheduler=scheduler, learning_rate=0.02, peak_learning_rate=peak, gamma=0.8
    )


def reference(recipe: Recipe, optimizer: Optimizer, num_steps: int) -> LRScheduler | None:
    if recipe.scheduler == "onecycle":
        return OneCycleLR(optimizer, max_lr=0.3, total_steps=num_steps, div_factor=0.3 / 0.02, final_div_factor=1e4)
    if recipe.scheduler == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps)
    return ExponentialLR(optimizer, gamma=0.8) if recipe.scheduler == "exponential" else None


def torch_settings(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> tuple[list[float], list[float]]:
    """Rates and momenta (or first betas) of every step of torch's own training loop."""
    num_steps = recipe.epochs * steps_per_epoch
    scheduler = reference(recipe, optimizer, num_steps)
    rates, momenta = [], []
    for step in range(num_steps):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["momentum"] if "momentum" in group else group["betas"][0])
        optimizer.step()
        per_epoch = recipe.scheduler == "exponential"
        if scheduler and step + 1 < num_steps and (not per_epoch or (step + 1) % steps_per_epoch == 0):
            scheduler.step()
    return rates, momenta


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(1, 1), (1, 3), (3, 7), (20, 11)])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_equals_torch(name: str, epochs: int, steps_per_epoch: int, kind: type) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    optimizer = SGD([parameter], lr=0.02, momentum=0.9) if kind is SGD else Adam([parameter], lr=0.02)
    chosen = recipe(name, epochs)
    steps = torch.arange(epochs * steps_per_epoch, dtype=torch.float64)
    setting = getattr(schedules, name)(steps, chosen, steps_per_epoch)
    rates, momenta = torch_settings(chosen, optimizer, steps_per_epoch)
    # float64 throughout; torch's cosine is a recursion, which gathers some rounding
    torch.testing.assert_close(setting.rate, torch.tensor(rates, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(setting.momentum, torch.tensor(momenta, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_onecycle_without_peak_is_refused() -> None:
    with pytest.raises(UsageError, match="peak_learning_rate: is missing"):
        schedules.onecycle(torch.zeros(1), Recipe(model="2lp", epochs=1, scheduler="onecycle"), 5)
