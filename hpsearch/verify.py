"""Verify an export: what it says of its data, its network and its weights, by looking at them."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hpsearch.claims import about
from hpsearch.errors import UsageError
from hpsearch.export import build, contents, parts, recipe_in
from hpsearch.export_schema import CARD, CONFIG, FILES, METRICS, MODEL, Metrics
from hpsearch.model_card import UNTESTED, card
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, unused
from hpsearch.train.program import Program, place
from hpsearch.trained import alike, dataset_of, same_loss

UNCHECKED = "label and rank, study and trial, search, confirmation and final test: only the storage can show them"


def verify(where: str | Path, settings: Settings) -> list[str]:
    """Check all that an export claims and that can be seen without the storage; a sentence for each check.

    The model card is compared if this version of hpsearch wrote it. What cannot be seen is in UNCHECKED.

    Raises:
        UsageError, DataError: a file is damaged, the data set is not here or is another one, the weights do not give
            the values that are stated, or the files contradict each other.
    """
    files = contents(where)
    metrics, spec, tensors = parts(where, files)
    model = build(metrics, tensors, where)
    done = [f"checksums: {len(FILES)} files are as they were exported", f"schema: version {metrics.schema_version}"]
    done.append(f"{CONFIG}: a valid study of {spec.model.name} on {spec.data.name}")
    done.append(f"{MODEL}: {metrics.model.num_parameters} parameters that fit {metrics.model.name}")
    recipe = _recipe(metrics, spec, where)
    dataset = dataset_of(spec, settings)
    if dataset.fingerprint != metrics.data.fingerprint:
        raise UsageError(
            f"{where}: {spec.data.name} is not the data set of the export here (its fingerprint differs); "
            "check the accuracy where the same images are"
        )
    own, stated = about(dataset, model, recipe), metrics.model_dump()
    if differ := [f"{part}.{key}" for part, keys in own.items() for key in keys if stated[part][key] != keys[key]]:
        raise UsageError(
            f"{where}/{METRICS}: {', '.join(differ)} are not those of the data or the network; export again"
        )
    loss, accuracy = Program(recipe, model, place(dataset, "cpu")).validate()
    claimed = metrics.weights
    for what, given, claim, same in (
        ("accuracy", accuracy, claimed.validation_accuracy, alike(accuracy, claimed.validation_accuracy, dataset)),
        ("loss", loss, claimed.validation_loss, same_loss(loss, claimed.validation_loss)),
    ):
        if not same:
            raise UsageError(
                f"{where}: its weights give a validation {what} of {given:.4f}, and {claim:.4f} is stated; do not "
                "use it"
            )
    done.append(f"data: {dataset.name}, fingerprint {dataset.fingerprint[:12]}…")
    if metrics.hpsearch_version == version("hpsearch"):  # another one may use other words
        if files[CARD].decode(errors="replace") not in [card(metrics, opened=opened) for opened in UNTESTED]:
            raise UsageError(f"{where}/{CARD}: says something else than {METRICS}; do not believe it, and export again")
        done.append(f"{CARD}: says what {METRICS} states")
    else:
        other = f"hpsearch {metrics.hpsearch_version} is said to have written it"
        done.append(f"{CARD}: not compared with {METRICS}, as {other}; do not rely on it")
    num = len(dataset.validation_labels)
    done.append(f"validation accuracy: {accuracy:.4f}, loss {loss:.4f} on {num} images, as stated")
    return done


def _recipe(metrics: Metrics, spec: StudySpec, where: str | Path) -> Recipe:
    """The recipe of the study file, which must be the one that is stated."""
    recipe = spec.recipe({}, spec.seeds[0], 0) if len(spec.seeds) == 1 and not spec.candidates else None
    if recipe is None or _deciding(recipe) != _deciding(recipe_in(metrics, where)):
        raise UsageError(f"{where}/{CONFIG}: trains another configuration than {METRICS} states; export again")
    pairs = {
        "weights.seed": (metrics.weights.seed, recipe.seed),
        "weights.epochs": (metrics.weights.epochs, recipe.epochs),
        "metric": (metrics.metric, spec.objective.metric),
    }
    if differ := [name for name, (stated, own) in pairs.items() if stated != own]:
        raise UsageError(f"{where}/{METRICS}: {', '.join(differ)} are not those of {CONFIG}; export again")
    return recipe


def _deciding(recipe: Recipe) -> Recipe:
    """Without what decides nothing, which a study file leaves out."""
    return replace(recipe, **unused(recipe))
