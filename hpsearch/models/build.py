"""Build the model of a recipe: its hyperparameters by signature, its weights from the recipe's seed."""

import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from hpsearch.errors import UsageError
from hpsearch.models import MODELS
from hpsearch.recipe import Recipe, fold

Constructor = Callable[..., nn.Module]  # (input_shape, num_classes, *, hyperparameters)
HYPERPARAMETERS = ("hidden_width", "dropout", "native_size")  # fields of a recipe that belong to the model


def build_model(
    recipe: Recipe, input_shape: tuple[int, int, int], num_classes: int, constructor: Constructor | None = None
) -> nn.Module:
    """The model on the CPU, in training mode; the global random state is left as it was.

    `input_shape` is (C, H, W). `constructor` is needed for models that are not in MODELS (`catalogue.load` finds
    them). Raises UsageError for a hyperparameter that the model does not take, or lazy layers, DataError for
    unsuited images.
    """
    constructor = constructor or built_in(recipe.model)
    given = {name: value for name in HYPERPARAMETERS if (value := getattr(recipe, name)) is not None}
    check_hyperparameters(recipe.model, constructor, given)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold(recipe.seed, 0))  # torch.manual_seed would seed every GPU as well
        model = constructor(input_shape, num_classes, **given)
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise UsageError(f"recipe: model {recipe.model} has lazy layers: give them their sizes, from input_shape")
    if kept := [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise UsageError(f"recipe: model {recipe.model}: its {kept[0]} is no tensor: keep it in a buffer, or not")
    return model


def built_in(name: str) -> Constructor:
    if name not in MODELS:
        raise UsageError(f"recipe: model = {name!r}: is none of {', '.join(sorted(MODELS))}")
    constructor: Constructor = pkgutil.resolve_name(MODELS[name])
    return constructor


def check_hyperparameters(model: str, constructor: Constructor, given: dict[str, Any]) -> None:
    parameters = inspect.signature(constructor).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = [parameter.name for parameter in parameters if parameter.name in HYPERPARAMETERS]
    for name, value in given.items():
        if name not in taken:
            takes = f"takes {' and '.join(taken)}" if taken else "takes no hyperparameters"
            raise UsageError(f"recipe: {name} = {value!r}: model {model} has no such hyperparameter, it {takes}")
