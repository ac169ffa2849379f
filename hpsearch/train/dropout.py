"""Dropout whose masks follow from a seed and the step, not from a random state: the same alone, in a lane, and resumed.

A mask is a hash of (seed, step, layer, use, image, unit): there is no generator to keep, lanes do not feel one another,
and a layer that is padded with more units drops the same ones of those that it had.
"""

import torch
from torch import Tensor, nn

FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32  # of lowbias32, a hash with little bias (Wellons, nullprogram.com, 2018)
IMAGE_STRIDE = 0x9E3779B1 - 2**32  # between images; odd, so that no two units of a batch share a counter
USES = 1024  # more than a layer is used in one step
RESOLUTION = 1 << 24  # steps in which a rate is met


class SeededDropout(nn.Module):
    """(B, ...) -> (B, ...): nn.Dropout by hash; `begin` announces each step.

    Buffers (), not part of a state: rate 0..1, seed and step (int32).
    """

    rate: Tensor
    seed: Tensor
    step: Tensor
    inplace = False

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.layer, self.uses = layer, 0
        self.idle = rate == 0  # a mask of ones takes a perceptron a tenth of its step
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.register_buffer("seed", torch.zeros((), dtype=torch.int32), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int32), persistent=False)

    @property
    def p(self) -> float:
        """The rate, as nn.Dropout has it; many lanes, which differ in it, have no such number."""
        return float(self.rate)

    @p.setter
    def p(self, rate: float) -> None:
        self.rate.fill_(rate)
        self.idle = rate == 0

    def begin(self, step: Tensor | int) -> None:
        """The next uses of the layer belong to this step."""
        if isinstance(step, Tensor):
            self.step.copy_(step)
        else:
            self.step.fill_(step)  # a copy of the number would wait for the GPU
        self.uses = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.idle or not self.training:
            return inputs
        num_units = inputs[0].numel()
        image = torch.arange(len(inputs), dtype=torch.int32, device=inputs.device)[:, None] * IMAGE_STRIDE
        unit = torch.arange(num_units, dtype=torch.int32, device=inputs.device)
        key = _mixed(_mixed(self.seed + (self.layer * USES + self.uses)) + self.step)
        self.uses += 1
        noise = _mixed(_mixed(image + unit) ^ key)  # (B, units)
        kept = (noise & (RESOLUTION - 1)) >= self.rate * RESOLUTION
        share = (1 - self.rate).clamp(min=1 / RESOLUTION)  # a rate of 1 keeps nothing
        return inputs * (kept / share).view_as(inputs)


def seeded(model: nn.Module) -> list[SeededDropout]:
    """Replace every nn.Dropout of the model in place; the new layers, in the order of the model.

    One that has several places is one layer there as well. A model of which this was done is left as it is.
    """
    if known := [layer for layer in model.modules() if isinstance(layer, SeededDropout)]:
        return known
    found = [(name, one) for name, one in model.named_modules(remove_duplicate=False) if type(one) is nn.Dropout]
    layers: dict[nn.Dropout, SeededDropout] = {}
    for name, dropout in found:
        parent, _, attribute = name.rpartition(".")
        layer = layers.setdefault(dropout, SeededDropout(dropout.p, len(layers)))
        setattr(model.get_submodule(parent), attribute, layer)
    return list(layers.values())


def seed_of(number: int) -> int:
    """A seed of 63 bits as the int32 that the hash takes."""
    return (number % 2**32) - 2**31


def _mixed(values: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers that scatters neighbours; int32 wraps around as the hash needs."""
    values = (values ^ ((values >> 16) & 0xFFFF)) * FIRST
    values = (values ^ ((values >> 15) & 0x1FFFF)) * SECOND
    return values ^ ((values >> 16) & 0xFFFF)
