"""The kernel of update.cu, compiled for a CPU: a step of K lanes is what torch's operations make of it.

Both compute in float32; a kernel may round a product and a sum once where torch rounds twice, so that a step differs by
a few units of 2**-24.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpsearch.recipe import Recipe
from hpsearch.train import lane_optimizers
from hpsearch.train.lane_optimizers import Moments, Numbers, apply
from tests.kernels_on_cpu import COMPILER, KernelsOnCpu

P = 2_500  # more than a block's numbers, and no multiple of them
RECIPE = Recipe(model="2lp", epochs=1, weight_decay=0.1, clip_norm=2.0)
LANES = [RECIPE, replace(RECIPE, optimizer="adam"), None, replace(RECIPE, optimizer="adamw", clip_norm=0.0)]


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
def test_a_step_of_the_kernel_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = KernelsOnCpu("hpsearch.train", "update.cu", {"EACH": lane_optimizers.EACH}, tmp_path)
    monkeypatch.setattr(lane_optimizers, "_kernels", lambda _: kernels)
    numbers = Numbers.of(LANES, torch.device("cpu"))
    found = []
    for by_kernel in (False, True):
        monkeypatch.setattr(lane_optimizers, "_by_kernel", lambda _, chosen=by_kernel: chosen)
        generator = torch.Generator().manual_seed(0)
        parameters = torch.randn(len(LANES), P, generator=generator)
        before, moments = parameters.clone(), Moments.of(parameters)
        for step in range(4):
            gradients = torch.randn(len(LANES), P, generator=generator)
            rate, momentum = torch.rand(2, len(LANES), generator=generator) * torch.tensor([1.0, 1.0, 0.0, 1.0])
            steps = torch.full((len(LANES),), step, dtype=torch.int32)
            apply(parameters, gradients, moments, numbers.at(rate, momentum, steps, gradients.norm(dim=1)))
        assert torch.equal(parameters[2], before[2])  # a free lane rests
        found.append([parameters, *moments.tensors()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
