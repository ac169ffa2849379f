"""Which parameters train in an epoch, and at which rate: for networks that begin with another one's weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from hpsearch.errors import UsageError
from hpsearch.recipe import Recipe
from hpsearch.train.optimizers import Buffers, Update


@dataclass(frozen=True)
class Part:
    """Parameters that train alike, with their buffers; their first update is at step `first_step`."""

    parameters: list[Tensor]
    buffers: Buffers
    rate: float = 1.0  # multiplies the learning rate
    first_step: int = 0

    def own(self, update: Update) -> Update:
        """The step as these parameters take it: Adam counts from their own first one."""
        return replace(update, rate=update.rate * self.rate, step=update.step - self.first_step)


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that own parameters, with their names, from the first one on."""
    return [(name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(False))]


def parts(
    model: nn.Module, recipe: Recipe, names: Sequence[str], tensors: Sequence[Tensor], buffers: Buffers
) -> tuple[Part, Part]:
    """Body and head: the first `frozen_layers` layers, and the rest; the body may be empty."""
    first = {layer for layer, _ in layers(model)[: recipe.frozen_layers]}
    body = [row for row, name in enumerate(names) if name.rpartition(".")[0] in first]
    head = [row for row in range(len(names)) if row not in set(body)]
    of_body, of_head = (_part(rows, tensors, buffers) for rows in (body, head))
    return replace(of_body, rate=recipe.frozen_rate), of_head


def check(model: nn.Module, recipe: Recipe) -> None:
    """Raises UsageError if no layer is left to train while others are frozen."""
    num_layers = len(layers(model))
    if recipe.frozen_epochs and recipe.frozen_layers >= num_layers:
        raise UsageError(
            f"recipe: frozen_layers = {recipe.frozen_layers}: {recipe.model} has {num_layers} layers, and one must "
            "train while others are frozen; freeze fewer, or set frozen_epochs = 0"
        )


def rest(model: nn.Module, recipe: Recipe) -> None:
    """Put the frozen layers into evaluation mode, so that batch normalisation keeps its statistics.

    Normalisation that has statistics and no parameters belongs to the layer before it.
    """
    num_layers = 0
    for layer in model.modules():
        owns = any(True for _ in layer.parameters(False))
        num_layers += owns
        if num_layers > recipe.frozen_layers:
            return
        if owns or getattr(layer, "running_mean", None) is not None:
            layer.training = False  # not `eval`, which would reach what is inside it, such as the head in the network


def _part(rows: Sequence[int], tensors: Sequence[Tensor], buffers: Mapping[str, list[Tensor]]) -> Part:
    return Part([tensors[row] for row in rows], {name: [kept[row] for row in rows] for name, kept in buffers.items()})
