"""Random numbers that networks draw in ways of their own, from the random state of the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

EVALUATION_SEED = 0  # one for all networks, as nothing but their weights may tell two of them apart


def draws(model: nn.Module) -> bool:
    """Whether a network may draw numbers of its own; one that does not says so, see docs/guide.md."""
    return bool(getattr(model, "own_randomness", True))


@contextmanager
def steady(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A block in which a network is evaluated: what it draws is the same every time, and others do not feel it."""
    if not draws(model):
        yield
        return
    with RandomState(device, EVALUATION_SEED).used():
        yield


class RandomState:
    """Random numbers of one trial's epoch, for networks that draw some in ways of their own; others do not feel it."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(seed)
            self._keep()

    @contextmanager
    def used(self) -> Iterator[None]:
        """A block that draws from here; the global state is as before at its end."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._gpu, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._keep()

    def _keep(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = [torch.cuda.get_rng_state(device) for device in self._devices]
