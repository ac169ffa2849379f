"""A training step as a CUDA graph: its kernels are recorded once and then started together, by one call.

A step of a small network is a hundred kernels of a few microseconds, which Python starts more slowly than a GPU runs
them. A recorded kernel works on the memory that it was recorded with, so everything that changes from step to step is
a tensor that stays where it is.

Source: "CUDA Graphs" in the notes of PyTorch's documentation ("CUDA semantics").
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpsearch.train.device_data import links, out_of_memory

WARM_UP_STEPS = 3  # before the recording: libraries choose algorithms and take their workspaces


class CannotRecord(Exception):
    """A step that cannot be a graph; the message is CUDA's."""


class StepGraph:
    """`function(*inputs)`, which changes `state` in place and returns nothing; calls take inputs of the same shapes.

    Making it leaves the state as it was. On a CPU nothing is recorded: a call runs the function on the same tensors
    that a graph would read.

    Raises:
        CannotRecord: the function waits for the GPU or copies from the CPU's memory.
        torch.OutOfMemoryError: there is no memory for a recording.
    """

    def __init__(self, function: Callable[..., None], inputs: Sequence[Tensor], state: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        step = partial(function, *self._inputs)
        self._run = recorded(step, state) if self._inputs[0].is_cuda else step

    def __call__(self, *inputs: Tensor) -> None:
        """One step; nothing waits for it."""
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._run()


def recorded(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """What replays the step's kernels; the state is as before."""
    kept = [tensor.detach().clone() for tensor in state]
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with torch.cuda.device(state[0].device):
        # One stream for both: the workspaces of the warm-up serve the recording.
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    step()
            # thread_local: what other threads do on the GPU meanwhile neither enters the graph nor breaks it
            try:
                with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                    step()
            except RuntimeError as error:  # the steps before it raised nothing
                _end(before.device_index, pool, stream)
                if any(map(out_of_memory, links(error))):  # the end of a broken recording hides what broke it
                    raise torch.OutOfMemoryError(str(error)) from error
                raise CannotRecord(" ".join(str(error).split())[:300]) from error
        finally:
            torch.cuda.set_stream(before)  # a recording that fails would leave it at the other one
            before.wait_stream(stream)
            with torch.no_grad():
                for tensor, value in zip(state, kept, strict=True):
                    tensor.copy_(value)
    replay: Callable[[], None] = graph.replay
    return replay


def _end(device_index: int, pool: Any, stream: torch.cuda.Stream) -> None:
    """End a recording that failed, which torch before 2.12 does not: graphs and random numbers would fail after it."""
    with suppress(RuntimeError):  # the allocator goes on as if it were recorded for
        torch._C._cuda_endAllocateToPool(device_index, pool)
    with suppress(RuntimeError):  # and so does the generator, until a recording comes to its end
        nothing = torch.zeros(1, device=torch.device("cuda", device_index))
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            nothing.zero_()
