"""What the metrics.json of an export claims: of its data and its network, and the evidence that the storage has."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from torch import nn

from hpsearch import confirm
from hpsearch.data.load import DataSet
from hpsearch.export_schema import SCHEMA_VERSION, Metrics
from hpsearch.models.build import HYPERPARAMETERS
from hpsearch.recipe import Recipe
from hpsearch.search.importance import bootstrap
from hpsearch.statistics import estimate
from hpsearch.storage.studies import LoadedStudy
from hpsearch.trained import Chosen, Network, recipe_of


def claims(
    study: LoadedStudy, one: Chosen, rank: int, dataset: DataSet, found: Network, looks: list[dict[str, Any]]
) -> Metrics:
    """All of it; `looks` are the openings of the test split."""
    recipe, trial = recipe_of(one.middle), one.middle
    content = {
        "schema_version": SCHEMA_VERSION,
        "hpsearch_version": version("hpsearch"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "label": one.label,
        "rank": rank,
        "metric": one.study.spec.objective.metric,
        "configuration": recipe.as_dict(),
        **about(dataset, found.model, recipe),
        "weights": {
            "study": one.study.name,
            "trial": trial.number,
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "validation_accuracy": found.accuracy,
            "validation_loss": found.loss,
        },
        "search": _search(study),
        "confirmation": _confirmation(one),
        "test": _test(one, looks),
    }
    return Metrics.model_validate(content)


def about(dataset: DataSet, model: nn.Module, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the data and the network alone decide: `verify` compares it."""
    given = {name: value for name in HYPERPARAMETERS if (value := getattr(recipe, name)) is not None}
    channels, height, _width = dataset.train_images.shape[1:]
    return {
        "model": {
            "name": recipe.model,
            "hyperparameters": given,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "classes": list(dataset.classes),
        },
        "preprocessing": {
            "channels": channels,
            "image_size": height,
            "mean": list(dataset.mean),
            "std": list(dataset.std),
        },
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "num_train": len(dataset.train_labels),
            "num_validation": len(dataset.validation_labels),
        },
    }


def _search(study: LoadedStudy) -> dict[str, Any] | None:
    if not study.spec.space:
        return None
    trials: list[FrozenTrial] = study.optuna_study.get_trials(deepcopy=False)
    num = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    ended = num[TrialState.COMPLETE] + num[TrialState.PRUNED] + num[TrialState.FAIL]
    found = bootstrap(study.optuna_study)
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = (max if study.spec.objective.maximize else min)(finite, default=None)
    return {
        "study": study.name,
        "trials": ended,
        "complete": num[TrialState.COMPLETE],
        "pruned": num[TrialState.PRUNED],
        "failed": num[TrialState.FAIL],
        "pruned_share": num[TrialState.PRUNED] / max(1, ended),
        "best_value": best,
        "importance_evaluator": found.evaluator,
        "importances": {name: asdict(one) for name, one in found.shares.items()},
    }


def _confirmation(one: Chosen) -> dict[str, Any] | None:
    if not one.confirmed:
        return None
    seeds = [recipe_of(trial).seed for trial in one.trials]
    values = [trial.value for trial in one.trials if trial.value is not None]
    content: dict[str, Any] = {
        "study": one.study.name,
        "candidate": one.label,
        "seeds": seeds,
        "planned": one.planned,
        "lost": one.lost,
        "value": estimate(values).as_dict(),
        "search_value": None,
        "luck": None,
        "not_told_apart": [],
    }
    if one.study.spec.candidates:
        standings = confirm.result(one.study).standings
        own = next(standing for standing in standings if standing.label == one.label)
        content |= {
            "search_value": own.origin.value,
            "luck": own.luck.as_dict() if own.luck else None,
            "not_told_apart": [standing.label for standing in standings if standing.in_set],
        }
    return content


def _test(one: Chosen, looks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first result of these networks: of an opening others may have been tested, alone or beside them."""
    made = [record for record in looks if "result" in record]  # the others ended while the split was open
    found = [(record, result) for record in made for result in record.get("results", [record["result"]])]
    own = [(record, result) for record, result in found if confirm.is_test_of(result, one.trials)]
    if not own:
        return None
    record, result = own[0]
    keys = ("num", "mean", "std", "low", "high")
    content = {name: {key: result[name][key] for key in keys} for name in ("accuracy", "macro_f1", "calibration_error")}
    return {"time": record["time"], "openings": len(looks), "label": result["label"], **content}
