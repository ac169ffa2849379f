"""The networks that a study's trials have trained: which configuration was chosen, and its weights.

With `worker.py` and `trial.py` a place where the search and the training half meet.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from optuna.trial import FrozenTrial
from torch import nn

from hpsearch import catalogue, confirm, weights
from hpsearch.arms import KIND as TRANSFER
from hpsearch.artifacts import key_of
from hpsearch.data.load import DataSet, load
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.models.build import build_model
from hpsearch.models.takeover import take_over
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import Database
from hpsearch.storage.pinned import check_data
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, progress, ranked, recorded_recipe
from hpsearch.train.augment import normalise
from hpsearch.train.program import Program, place
from hpsearch.train.randomness import steady

Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """One configuration and the completed trials that have it; `study` holds them, `confirmed` says whence it comes.

    Of the `planned` trials `lost` diverged or failed.
    """

    label: str
    study: LoadedStudy
    trials: tuple[FrozenTrial, ...]
    confirmed: bool
    planned: int = 1
    lost: int = 0

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.trials[0])

    @property
    def middle(self) -> FrozenTrial:
        """The trial of median value (the worse one of two): neither a lucky seed nor an unlucky one."""
        sign = 1.0 if self.study.spec.objective.maximize else -1.0
        order = sorted(self.trials, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
        return order[(len(order) - 1) // 2]


def recipe_of(trial: FrozenTrial) -> Recipe:
    return Recipe(**trial.user_attrs[RECIPE_KEY])


def choose(
    database: Database, study: LoadedStudy, *, confirmed: bool = True, say: Say = lambda _text: None
) -> list[Chosen]:
    """The configurations of a study that can be tested or exported, the best first.

    Those of a search are taken from its confirmation; with `confirmed=False` from the search itself if there is none. A
    study over seeds must have ended, unless `confirmed=False`, and a confirmation in any case.

    Raises:
        UsageError: nothing can be chosen yet; it says what to do.
    """
    link = confirm.link_of(study)
    if study.spec.space:
        confirming = confirm.find(database, study)
    else:
        confirming = study if link.get("kind") == confirm.CONFIRM else None
    if confirming is not None:
        result = confirm.result(confirming)
        if result.lost:
            raise UsageError(
                f"study {study.name}: nothing is confirmed, as of every candidate a trial diverged or failed; "
                f"see `hpsearch trials {confirming.name}`"
            )
        if not result.finished:
            its = "it confirms another one, and" if confirming is study else "its confirmation"
            raise UsageError(
                f"study {study.name}: {its} is not finished; run `hpsearch worker {confirming.name}` first"
            )
        if warning := confirm.overtaken(confirm.searched(database, confirming), result):
            say(warning)
        return _over_seeds(database, confirming)
    now = progress(database, study)
    ended = f"study {study.name}: {now.finished} of its {now.max_trials} trials have ended"
    if now.unfinished and not confirmed:
        say(f"{ended}, and the evidence is of these alone; `hpsearch worker {study.name}` trains the others")
    if not study.spec.space:
        if confirmed and now.unfinished:
            raise UsageError(f"{ended}; run `hpsearch worker {study.name}` first")
        if confirmed and study.spec.candidates and link.get("kind") != TRANSFER and confirm.result(study).lost:
            raise UsageError(
                f"study {study.name}: no candidate is left, as of each a trial diverged or failed; "
                f"see `hpsearch trials {study.name}`"
            )
        return _over_seeds(database, study)
    if confirmed:
        raise UsageError(
            f"study {study.name}: its best trial is not confirmed, and the best of many is partly luck; "
            f"run `hpsearch confirm {study.name}` first"
        )
    trained = [trial for trial in ranked(study) if recorded_recipe(trial.user_attrs)]  # Optuna can add others
    found = [Chosen(f"trial {trial.number}", study, (trial,), False) for trial in trained]
    if not found:
        raise UsageError(f"study {study.name}: no trial has completed yet; run `hpsearch worker {study.name}` first")
    return found


def _over_seeds(database: Database, study: LoadedStudy) -> list[Chosen]:
    numbered = [(study.name, 0)]
    if study.spec.candidates:
        standings = confirm.result(study).standings
        numbered = [(one.label, one.number) for one in standings if one.in_set]
        numbered += [(one.label, one.number) for one in standings if not one.in_set]
    groups, max_trials = confirm.groups(study), progress(database, study).max_trials
    found = []
    for label, number in numbered:
        trials, lost = groups[number].trials, groups[number].lost
        planned = len(range(number, max_trials, len(groups)))
        planned = min(planned, len(study.spec.seeds)) if study.spec.candidates else planned
        if trials:
            found.append(Chosen(label, study, trials, True, max(planned, len(trials) + lost), lost))
    if not found:
        raise UsageError(f"study {study.name}: no trial has completed yet; run `hpsearch worker {study.name}` first")
    return found


def dataset_of(spec: StudySpec, settings: Settings) -> DataSet:
    """The training and validation part of the specification's data set, as it is here."""
    cache = settings.datasets
    return load(spec.data.name, data_dir=settings.data_dir, cache_dir=cache, image_size=spec.data.image_size)


def data_of(study: LoadedStudy, settings: Settings) -> DataSet:
    """`dataset_of` its specification.

    Raises:
        DataError: the images are not those that the study's trials saw.
    """
    dataset = dataset_of(study.spec, settings)
    check_data(study, dataset.fingerprint)
    return dataset


@dataclass(frozen=True)
class Network:
    """A trained network, on the CPU, ready to predict, and what it gives on the validation part."""

    model: nn.Module
    loss: float
    accuracy: float


def network(study: LoadedStudy, trial: FrozenTrial, dataset: DataSet, settings: Settings, say: Say) -> Network:
    """The network of a completed trial: its kept weights, else trained once more.

    Training repeats itself bit for bit on the same kind of CPU and as many cores; elsewhere, up to rounding.

    Raises:
        HpsearchError: the trial is evidence, and this network is not the one that it trained.
    """
    recipe = recipe_of(trial)
    constructor = catalogue.load("hpsearch.models", recipe.model)
    channels, height, width = dataset.train_images.shape[1:]
    model = build_model(recipe, (channels, height, width), len(dataset.classes), constructor)
    kept, key = open_checkpoints(settings.weights), key_of(recipe.identity(), dataset.fingerprint, study.created)
    state = weights.kept(kept, key)
    if state is not None and _fits(model, state):
        model.load_state_dict(state)
        found = Network(model.eval(), *Program(recipe, model, place(dataset, "cpu")).validate())
        check(study, trial, found, dataset, f"bring its own to {kept.place}")
        return found
    say(f"trial {trial.number} of {study.name}: its weights are not in {kept.place}, so it trains once more")
    if recipe.start == "export":
        take_over(model, weights.of_export(kept, study.spec.model.export or "", dataset.classes))
    program = Program(recipe, model, place(dataset, torch.device("cpu")))
    while program.epoch < recipe.epochs:
        result = program.run_epoch()
    found = Network(model.eval(), result.validation_loss, result.validation_accuracy)
    check(study, trial, found, dataset, "bring the kept weights (storage/weights)")
    own, recorded, what = _compared(study, trial, found)
    if not _as_recorded(study, trial, found, dataset):
        say(
            f"trial {trial.number} of {study.name}: trained again, its {what} is {own:.4f}, and "
            f"{recorded:.4f} is recorded; another device, version or number of cores rounds differently"
        )
    with contextlib.suppress(OSError):
        weights.keep(kept, key, program.state())
    return found


def check(study: LoadedStudy, trial: FrozenTrial, found: Network, dataset: DataSet, bring: str) -> None:
    """Check that a network over seeds gives the value that is recorded; a search has shown nothing yet.

    `bring` says what to do if it does not.

    Raises:
        HpsearchError: it does not, so this is another network.
    """
    if not study.spec.space and not _as_recorded(study, trial, found, dataset):
        own, recorded, what = _compared(study, trial, found)
        raise HpsearchError(
            f"trial {trial.number} of {study.name}: its network gives a {what} of {own:.4f} here, and {recorded:.4f} "
            f"is recorded; {bring} from the machine that trained it; workers keep those of a confirmation"
        )


def _compared(study: LoadedStudy, trial: FrozenTrial, found: Network) -> tuple[float, float, str]:
    """The network's own value, the recorded one, and what they are."""
    metric = study.spec.objective.metric
    own = found.accuracy if metric == "validation_accuracy" else found.loss
    return own, math.nan if trial.value is None else trial.value, metric.replace("_", " ")


def _as_recorded(study: LoadedStudy, trial: FrozenTrial, found: Network, dataset: DataSet) -> bool:
    own, recorded, _ = _compared(study, trial, found)
    of_loss = study.spec.objective.metric == "validation_loss"
    return same_loss(own, recorded) if of_loss else alike(own, recorded, dataset)


def alike(one: float, other: float, dataset: DataSet) -> bool:
    """Whether two validation accuracies differ by one image in 5,000, or by one: by rounding on another machine."""
    return abs(one - other) <= max(1.5 / len(dataset.validation_labels), 3e-4)


def same_loss(one: float, other: float) -> bool:
    """Whether two validation losses differ by rounding alone."""
    # Sums of float32 in another order, on a GPU or with other cores, change a loss by some 1e-6 of it; what two seeds
    # give differs by percents. A loss near 0 has the absolute error of a float32 logit, which is about 1e-6.
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-5)


def probabilities(model: nn.Module, images: Any, dataset: DataSet) -> Any:
    """Softmax (N, k) float64 of images uint8 (N, C, H, W), normalised as in training."""
    parts = []
    with torch.no_grad(), steady(model, torch.device("cpu")):
        for block in torch.split(torch.from_numpy(images), 500):
            logits = model(normalise(block, dataset.mean, dataset.std))
            parts.append(logits.double().softmax(1))
    return torch.cat(parts).numpy()


def _fits(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(own[name].shape == state[name].shape for name in own)
