"""A recorded step computes what the step computes, though it sees no Python again.

`replayed` does on a CPU what a CUDA graph does: the operations of one step, on the tensors of that step, over and over.
A number of Python in the step, a tensor that is made anew between steps, or a branch that should have been taken
another way shows as on a GPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train import graphs as graphs_module
from hpsearch.train.device_data import place
from hpsearch.train.fused import Fused
from hpsearch.train.graphs import CannotRecord, StepGraph
from tests.train.data import small_data_set
from tests.train.test_fused import DEVICES, fill, recipes

Step = Callable[[], None]


class Operations(TorchDispatchMode):
    """Collects every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.append((func, args, kwargs or {}, result))
        return result


def replayed(step: Step, state: Sequence[Tensor]) -> Step:
    """As `recorded`, without a GPU."""
    kept = [tensor.detach().clone() for tensor in state]
    with Operations() as operations:
        step()
    with torch.no_grad():
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, results in operations.seen:
            again = tree_leaves(func(*args, **kwargs))
            for result, value in zip(tree_leaves(results), again, strict=True):
                if isinstance(result, Tensor) and result.data_ptr() != value.data_ptr():  # else a view, or in place
                    result.copy_(value)

    return replay


@pytest.fixture(autouse=True)
def nothing_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN adds in the same order in every run."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture
def num_recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps on a CPU are replayed; one entry for each graph."""
    made: list[int] = []

    def init(graph: Any, function: Any, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> None:
        made.append(len(made))
        graph._inputs = [tensor.clone() for tensor in inputs]
        record = graphs_module.recorded if inputs[0].is_cuda else replayed
        graph._run = record(lambda: function(*graph._inputs), state)

    monkeypatch.setattr(StepGraph, "__init__", init)
    return made


def pair(first: Recipe, device: str, num_images: int = 70) -> tuple[Fused, Fused]:
    data = place(small_data_set(num_images), device)
    return Fused(first, 12, data, 3), Fused(first, 12, data, 3, graphed=True)


def assert_equal(eager: Fused, graphed: Fused, num_epochs: int = 2) -> None:
    """The same epochs, the same state: bit for bit."""
    for _ in range(num_epochs):
        one, other = eager.run_epoch(), graphed.run_epoch()
        assert one.keys() == other.keys()
        for lane in one:
            assert replace(one[lane], images_per_second=0.0) == replace(other[lane], images_per_second=0.0)
    for lane in one:
        for name, value in eager.take(lane).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(graphed.take(lane)[name])), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model", "optimizer"), [("lenet-bn", "adamw"), ("3lp", "adam"), ("2lp", "sgd")])
def test_lanes_with_a_graph_equal_lanes_without(
    model: str, optimizer: str, device: str, num_recorded: list[int]
) -> None:
    chosen = recipes(model, optimizer, "onecycle", 16)  # of 70 images: the last batch has 6
    both = pair(chosen[0], device)
    for program in both:
        for lane, recipe in enumerate(chosen):
            fill(program, lane, recipe)
    assert_equal(*both)
    assert num_recorded == [0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_refilled_lane_needs_no_new_graph(device: str, num_recorded: list[int]) -> None:
    first, second, third = recipes("lenet", "sgd", "cosine", 16)
    both = pair(first, device)
    for program in both:
        fill(program, 0, first)
        fill(program, 1, second)
    assert_equal(*both)
    state = both[0].take(0)
    for program in both:
        program.free(1)
        fill(program, 1, replace(third, stream_offset=2))
        program.free(0)
        fill(program, 2, first, state)
    assert_equal(*both)
    assert num_recorded == [0]


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_that_begins_or_ends_makes_a_new_graph(device: str, num_recorded: list[int]) -> None:
    first, second, third = recipes("3lp", "adamw", "constant", 16)
    both = pair(first, device)
    for lane, recipe in enumerate((second, replace(third, stream_offset=1))):  # without dropout, with it
        for program in both:
            fill(program, lane, recipe)
        assert_equal(*both, num_epochs=1)
    for program in both:
        program.free(1)
    assert_equal(*both)
    assert num_recorded == [0, 1, 2]


class Copying(nn.Module):
    """It copies a number from the CPU's memory, which no graph can contain."""

    own_randomness = False
    static_graph = True

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        half = torch.tensor([0.5]).to(images.device)
        logits: Tensor = self.output(images.flatten(1) * half)
        return logits


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_cannot_be_recorded_trains_all_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        monkeypatch.setattr(StepGraph, "__init__", refuse)
    given = recipes("2lp", "sgd", "constant", 16)
    chosen = [replace(one, model="Copying", hidden_width=None, dropout=None) for one in given]
    data = place(small_data_set(70), device)
    both = [Fused(chosen[0], None, data, 3, Copying, graphed=graphed) for graphed in (False, True)]
    for program in both:
        for lane, recipe in enumerate(chosen):
            program.fill(lane, recipe, build_model(recipe, data.input_shape, data.num_classes, Copying))
    assert_equal(*both)
    assert [bool(program.unrecorded) for program in both] == [False, True]


@pytest.mark.parametrize("held", [False, True])
def test_a_recording_without_memory(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It steps without one; unless augmented images are held, which make room first."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StepGraph, "__init__", full)
    chosen = recipes("2lp", "sgd", "constant", 16)
    both = pair(chosen[0], "cpu")
    for program in both:
        fill(program, 0, chosen[0])
    if held:
        data = both[1].data
        data.augmented.epochs["any"] = 0, [(data.validation_images, data.validation_labels)]
        with pytest.raises(torch.OutOfMemoryError):
            both[1].train_epoch()
        data.augmented.give_up()
    else:
        assert_equal(*both)
        assert not both[1].unrecorded


class Growing(Copying):
    """It does something else in every step, and does not say `static_graph`."""

    static_graph = False


def test_a_network_that_does_not_say_so_is_never_recorded(num_recorded: list[int]) -> None:
    first, *_ = recipes("2lp", "sgd", "constant", 16)
    chosen = replace(first, model="Growing", hidden_width=None, dropout=None)
    data = place(small_data_set(70), "cpu")
    program = Fused(chosen, None, data, 1, Growing, graphed=True)
    program.fill(0, chosen, build_model(chosen, data.input_shape, data.num_classes, Growing))
    program.run_epoch()
    assert num_recorded == []


def refuse(*_: object) -> None:
    raise CannotRecord("operation not permitted when stream is capturing")


def test_an_epoch_shorter_than_a_batch_makes_no_graph(num_recorded: list[int]) -> None:
    first, *_ = recipes("2lp", "sgd", "constant", 64)
    both = pair(first, "cpu", num_images=40)
    for program in both:
        fill(program, 0, first)
    assert_equal(*both)
    assert num_recorded == []


def test_a_step_on_a_cpu_runs_on_tensors_that_stay_where_they_are() -> None:
    seen: list[int] = []
    total = torch.zeros(2)

    def step(values: Tensor) -> None:
        seen.append(values.data_ptr())
        total.add_(values)

    graph = StepGraph(step, [torch.zeros(2)], [total])
    for number in (1.0, 2.0):
        graph(torch.full((2,), number))
    assert total.tolist() == [3.0, 3.0]
    assert len(seen) == 2
    assert len(set(seen)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype, it says
@pytest.mark.parametrize("graphed", [False, True])
def test_nothing_waits_for_the_gpu_between_steps(graphed: bool) -> None:
    chosen = [replace(one, augmentation="paper") for one in recipes("lenet", "adamw", "onecycle", 16)]
    data = place(small_data_set(), "cuda")
    program = Fused(chosen[0], 12, data, 3, graphed=graphed)
    for lane, recipe in enumerate(chosen):
        fill(program, lane, recipe)
    program.run_epoch()  # records
    numbers = torch.zeros(3, device="cuda")
    try:
        torch.cuda.set_sync_debug_mode("error")
        for images, labels in program.stream.batches(data, 1):
            program._advance(images, labels, numbers, numbers, numbers.int())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_after_a_cuda_recording_that_failed_earlier_ones_go_on() -> None:
    """Also, random numbers can be drawn, memory be freed, and other steps be recorded."""
    total, ones = torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")

    def add(values: Tensor) -> None:
        total.add_(values)

    step = StepGraph(add, [ones], [total])
    with pytest.raises(CannotRecord):
        StepGraph(lambda values: total.add_(values.sum().item()), [ones], [total])
    step(ones)
    torch.rand(1, device="cuda")
    torch.cuda.empty_cache()
    StepGraph(add, [ones], [total])(2 * ones)
    assert total.tolist() == [3.0, 3.0]


def test_memory_that_ran_out_in_a_recording_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a recording that is broken raises an error of its own, with torch's context manager."""
    stream, context = SimpleNamespace(device_index=0, wait_stream=lambda _: None), SimpleNamespace()

    @contextmanager
    def recording(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    def step(steps: list[int]) -> None:
        steps.append(0)
        if len(steps) > graphs_module.WARM_UP_STEPS:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("device", "stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: context)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(graphs_module, "_end", lambda *_: None)
    with pytest.raises(torch.OutOfMemoryError):
        graphs_module.recorded(partial(step, []), [torch.zeros(2)])
