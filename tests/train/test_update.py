"""The kernels of update.cu, compiled for a CPU: a step of K lanes is what torch's operations make of it.

Both compute in float32; a kernel may round a product and a sum once where torch rounds twice, so that a step differs by
a few units of 2**-24.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from hpsearch.train import lane_optimizers
from hpsearch.train.lane_optimizers import LANE_OPTIMIZERS, StepNumbers
from tests.kernels_on_cpu import COMPILER, KernelsOnCpu

K, P = 3, 2_500  # more than a block's numbers, and no multiple of them


def numbers(step: int) -> StepNumbers:
    values = torch.rand(4, K, 1, generator=torch.Generator().manual_seed(step))
    rate, decay = 0.01 * values[0], 0.1 * values[1]
    return StepNumbers(rate, values[2], decay, 1 + 3 * values[3], torch.full((K, 1), step + 1, dtype=torch.float64))


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
@pytest.mark.parametrize("name", sorted(LANE_OPTIMIZERS))
def test_a_step_of_a_kernel_is_that_of_torch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = KernelsOnCpu("hpsearch.train", "update.cu", {"EACH": lane_optimizers.EACH}, tmp_path)
    monkeypatch.setattr(lane_optimizers, "_kernels", cache(lambda _: kernels))
    optimizer = LANE_OPTIMIZERS[name]
    found = []
    for by_kernel in (False, True):
        monkeypatch.setattr(lane_optimizers, "_by_kernel", lambda _, chosen=by_kernel: chosen)
        generator = torch.Generator().manual_seed(0)
        parameters = torch.randn(K, P, generator=generator)
        buffers = {buffer: torch.zeros(K, P) for buffer in optimizer.buffers}
        for step in range(4):
            gradients = torch.randn(K, P, generator=generator)
            at = numbers(step)
            if step == 2:
                at = replace(at, rate=torch.tensor([[0.0], [1.0], [0.01]]))  # a free lane rests
            optimizer.apply(parameters, gradients, buffers, at)
        found.append([parameters, *buffers.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
