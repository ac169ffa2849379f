"""Lanes whose forward and backward pass torch.compile has made compute what the others do.

The backend `aot_eager` captures the graphs as `inductor` does, and runs them as they are, without a compiler.
"""

from dataclasses import replace

import pytest
import torch

from hpsearch.train.device_data import place
from hpsearch.train.fused import Fused
from tests.train.data import small_data_set
from tests.train.test_fused import DEVICES, fill, recipes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model", "optimizer"), [("lenet-bn", "adamw"), ("3lp", "adam"), ("2lp", "sgd")])
def test_lanes_that_are_compiled_equal_lanes_that_are_not(model: str, optimizer: str, device: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    chosen = recipes(model, optimizer, "onecycle", 16)  # of 70 images: the last batch has 6
    data = place(small_data_set(70), device)
    programs = [Fused(chosen[0], 12, data, 3, compiler=compiler) for compiler in (None, "aot_eager")]
    for program in programs:
        for lane, recipe in enumerate(chosen):
            fill(program, lane, recipe)
    for _ in range(2):
        plain, compiled = (program.run_epoch() for program in programs)
        for lane in plain:
            one, other = (replace(results[lane], images_per_second=0.0) for results in (plain, compiled))
            assert vars(one) == pytest.approx(vars(other), rel=1e-4, abs=1e-6)  # the order of sums may differ
    for lane in plain:
        for name, value in programs[0].take(lane).items():
            found = programs[1].take(lane)[name]
            torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(value), rtol=1e-3, atol=1e-5)
    seen = torch._dynamo.utils.counters["stats"]  # one graph, made once
    assert (seen["unique_graphs"], len(torch._dynamo.utils.counters["graph_break"])) == (1, 0)
