"""Take parameters of one network over into another: those whose name and shape agree.

The head, the last layer, says which class is which: it begins anew where the classes are others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COPIED, RESIZED, NEW, LEFT = "copied", "resized", "new", "left behind"


@dataclass(frozen=True)
class Fate:
    """What becomes of one layer: copied; resized (there in another size, so it begins anew); new; or left behind."""

    layer: str
    fate: str
    why: str
    num_values: int


@dataclass(frozen=True)
class Start:
    """Weights to begin with, by name; `foreign_head` is the layer of them that stands for other classes, if any."""

    tensors: Mapping[str, Tensor]
    foreign_head: str = ""


def take_over(model: nn.Module, start: Start) -> None:
    """Copy every layer into the layer of that name, if all of its tensors have the same shapes."""
    copied = {fate.layer for fate in fates(model, start) if fate.fate == COPIED}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if _layer(name) in copied:
                tensor.copy_(start.tensors[name])


def fates(model: nn.Module, start: Start) -> list[Fate]:
    """Every layer of the model, in order, and then those that only the start has."""
    own = _by_layer(model.state_dict())
    given = _by_layer(start.tensors)
    found = [
        _fate(layer, tensors, given.get(layer))
        if not start.foreign_head or layer != start.foreign_head  # "" is the layer of a network's own parameters
        else Fate(layer, NEW, "in the export its outputs stand for other classes", _size(tensors))
        for layer, tensors in own.items()
    ]
    lost = [layer for layer in given if layer not in own]
    return found + [Fate(layer, LEFT, "the network has no layer of this name", _size(given[layer])) for layer in lost]


def _fate(layer: str, tensors: Mapping[str, Tensor], given: Mapping[str, Tensor] | None) -> Fate:
    if given is None:
        return Fate(layer, NEW, "the export has no layer of this name", _size(tensors))
    differ = [name for name in tensors.keys() | given.keys() if _shape(tensors, name) != _shape(given, name)]
    if not differ:
        return Fate(layer, COPIED, "name and shapes agree", _size(tensors))
    name = sorted(differ, reverse=True)[0]  # the weight before the bias
    change = f"{name.rpartition('.')[2]} is {_shape(tensors, name)}, in the export {_shape(given, name)}"
    return Fate(layer, RESIZED, f"{change}; begins anew", _size(tensors))


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        grouped.setdefault(_layer(name), {})[name] = tensor
    return grouped


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return " x ".join(map(str, tensors[name].shape)) if name in tensors else "not there"


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
