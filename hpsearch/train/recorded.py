"""A training step as the plain list of its operations, recorded once: modules and autograd are left out.

On a CPU they take a tenth of the step of a small network. The operations are the same ones in the same order, so
nothing is rounded differently. Figures: "An epoch" in docs/benchmarks.md.

No number that depends on a tensor can enter a recording: tensors hold none while it is made.

Source: make_fx, the tracer of torch.func and torch.compile, in torch.fx.experimental.proxy_tensor.
"""

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

# It logs what ends a recording as an error with its traceback; some networks just cannot be recorded.
logging.getLogger("torch._subclasses.fake_tensor").addFilter(lambda _record: False)

WORTH = 2_000  # steps, which save what the recording takes, about 0.3 s
RENAMED = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
KEPT = 16  # recordings, of the last graphs; none holds a tensor

Derived = tuple[Tensor, Tensor, list[Tensor], list[list[tuple[Tensor, Tensor]]]]
Step = Callable[[Tensor, Tensor], Derived]  # of images (B, C, H, W) and labels (B,)
Forward = Callable[[Tensor], Tensor]
Derive = Callable[[Forward, Mapping[str, Tensor], Tensor, Tensor], Derived]

_recordings: dict[Hashable, Callable[..., Any] | None] = {}


def record(key: Hashable, model: nn.Module, derive: Derive, images: Tensor, labels: Tensor) -> Step | None:
    """`derive` on the tensors of `model`, for batches of the shapes given; None if that cannot be recorded.

    `derive` gets the network as a function, its tensors by name, images and labels. It must do the same at every
    step, and models of one `key` must do the same; a branch on what is in a tensor cannot be recorded, nor can the
    use of tensors that are neither parameters nor buffers. Not while another thread records.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def step(images: Tensor, labels: Tensor, *values: Tensor) -> Derived:
        given = dict(zip(tensors, values, strict=True))
        derived = derive(lambda some: functional_call(model, given, (some,)), given, images, labels)
        if any(given[name] is not value for name, value in zip(tensors, values, strict=True)):
            raise ValueError("a forward pass that replaces a buffer cannot be recorded: the new one would be lost")
        return derived

    if key not in _recordings:
        copies = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors.values()]
        try:
            traced = _tidy(make_fx(step, tracing_mode="fake")(images, labels, *copies))
        except Exception:  # of as many kinds as there are reasons
            traced = None
        if len(_recordings) >= KEPT:
            _recordings.pop(next(iter(_recordings)))
        _recordings[key] = traced.forward if traced is not None else None
    if (recording := _recordings[key]) is None:
        return None
    own = [tensor.detach() for tensor in tensors.values()]

    def replay(images: Tensor, labels: Tensor) -> Derived:
        with torch.no_grad():
            derived: Derived = recording(images, labels, *own)
        return derived

    return replay


def _tidy(traced: GraphModule) -> GraphModule | None:
    """Without what only autograd wanted: second names of tensors, and unused values. None if it holds tensors."""
    if any(node.op == "get_attr" for node in traced.graph.nodes):
        return None
    for node in traced.graph.nodes:
        if node.target in RENAMED:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()  # which leaves operations that change a tensor
    traced.recompile()
    return traced
