"""Trying a study's network before a trial is taken: what does not suit the images would fail in all of them."""

from collections.abc import Iterator

import torch

from hpsearch.errors import UsageError
from hpsearch.recipe import Recipe
from hpsearch.search.samplers import corner
from hpsearch.space import Choice, Int, Value
from hpsearch.spec import StudySpec
from hpsearch.train.device_data import out_of_memory
from hpsearch.trial import Bench


def try_models(bench: Bench) -> None:
    """Build the networks at the ends of the study's space, and let each see two images.

    Raises:
        UsageError: one of them cannot be built, or does not suit the images.
    """
    for recipe in _extremes(bench.study.spec):
        _try(bench, recipe)


def _extremes(spec: StudySpec) -> Iterator[Recipe]:
    """The lowest configuration of each candidate, and those that differ from it in what decides how they are built."""
    lowest = corner(spec)
    yield from (spec.recipe(lowest, 0, 0, candidate) for candidate in range(len(spec.candidates) or 1))
    frozen = lowest
    if values := _values(spec, "frozen_epochs"):
        frozen = {**lowest, "frozen_epochs": values[-1]}
        yield spec.recipe(frozen, 0, 0)
    for name in ("native_size", "frozen_layers"):
        yield from (spec.recipe({**frozen, name: value}, 0, 0) for value in _values(spec, name))


def _values(spec: StudySpec, name: str) -> tuple[Value, ...]:
    """The choices of a hyperparameter, or the ends of its range."""
    searched = spec.space.get(name)
    if isinstance(searched, Choice):
        return searched.choices
    return (searched.low, searched.high) if isinstance(searched, Int) else ()


def _try(bench: Bench, recipe: Recipe) -> None:
    """One forward pass, so that a network that does not suit the images takes no trial.

    Raises:
        UsageError: it does not.
    """
    suits = f"images of shape {bench.data.input_shape}"
    try:
        model = bench.model(recipe).to(bench.data.device)
        images = torch.zeros(2, *bench.data.input_shape, device=bench.data.device)
        with torch.no_grad():  # not inference_mode: what a network keeps of this would be of no use in training
            shape = tuple(model.eval()(images).shape)
            if (batch_size := _leaving_one(bench, recipe)) is not None:
                suits = f"an epoch's last batch of one image, with batch_size = {batch_size}"
                model.train()(images[:1])  # of which batch normalisation can make nothing
    except (UsageError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if bench.data.device.type == "cuda" and out_of_memory(error):  # others fill it, not the network
            raise torch.OutOfMemoryError(str(error)) from error
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        if shape == (2, bench.data.num_classes):
            return
        problem = f"2 of them give outputs of shape {shape}, not (2, {bench.data.num_classes})"
    raise UsageError(f"model {recipe.model}: does not suit {suits}: {problem}")


def _leaving_one(bench: Bench, recipe: Recipe) -> int | None:
    """A batch size that trials can have, if there is one, with which the last batch of an epoch has one image."""
    spec, searched = bench.study.spec, bench.study.spec.space.get("batch_size")
    base = spec.training.get("batch_size", Recipe.batch_size)
    given = [recipe.batch_size, *(values.get("batch_size", base) for _, values in spec.candidates)]
    if isinstance(searched, Choice | Int):
        if isinstance(searched, Choice):
            given += searched.choices
        else:  # who takes all images at once has one step, and no last batch
            given += range(searched.low, min(searched.high, bench.data.num_images) + 1, searched.step)
        given += [base] if searched.when else []
    return next((size for size in sorted(map(int, given)) if (bench.data.num_images % size or size) == 1), None)
