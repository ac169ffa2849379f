"""Transfer: carry an export over to another data set, and compare that with training from scratch there.

The comparison is a study of its own: the same configuration with the weights of the export and without them, over the
same seeds, data order and epochs. Workers train it like any other study.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hpsearch import catalogue, confirm, weights
from hpsearch import spec as study_file
from hpsearch.arms import KIND, SCRATCH
from hpsearch.data.load import DataSet, load
from hpsearch.errors import UsageError
from hpsearch.export import build, head, read
from hpsearch.export_schema import Metrics
from hpsearch.models.build import build_model
from hpsearch.models.takeover import Fate, Start, fates
from hpsearch.names import derived
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study, study_names
from hpsearch.train.freezing import layers

DEFAULT_SEEDS = 5
THAW_SHARE = 4  # "thawed" trains the head alone for a quarter of the epochs
THAW_RATE = 0.1  # and then the rest with a tenth of the rate


@dataclass(frozen=True)
class Plan:
    """One comparison: its study file, what becomes of each layer, and the export's weights."""

    spec: StudySpec
    layers: tuple[Fate, ...]
    tensors: Mapping[str, Tensor]
    head: str  # the layer of them whose outputs stand for the classes
    classes: tuple[str, ...]
    num_seeds: int | None  # as asked for: what nobody asked for is as in the study, if it is there already
    epochs: int | None


def plan(
    where: str | Path, data: str, image_size: int | None, num_seeds: int | None, epochs: int | None, settings: Settings
) -> Plan:
    """What a transfer would compare. Reads the target's training part; creates nothing.

    Raises:
        UsageError, DataError: the export is damaged, or the target does not suit it.
    """
    metrics, _, tensors = read(where)
    output = head(build(metrics, tensors, where), metrics, where)
    classes = tuple(metrics.model.classes)
    size = image_size or metrics.preprocessing.image_size
    target = load(data, data_dir=settings.data_dir, cache_dir=settings.datasets, image_size=size)
    _suit(metrics, target, where)
    recipe = Recipe(**metrics.configuration)
    native = recipe.native_size or (
        None if size == metrics.preprocessing.image_size else metrics.preprocessing.image_size
    )
    fixed = {**confirm.configuration(recipe), "epochs": epochs or recipe.epochs}
    fixed |= {"native_size": native} if native else {}
    if recipe.scheduler != "exponential":
        fixed.pop("gamma", None)
    start = Start(tensors, "" if target.classes == classes else output)
    found, num_layers = _fates(metrics, target, native, start)
    spec = _spec(metrics, data, size, num_seeds or DEFAULT_SEEDS, fixed, num_layers)
    return Plan(spec, tuple(found), tensors, output, classes, num_seeds, epochs)


def create(database: Database, plans: Sequence[Plan], settings: Settings) -> list[LoadedStudy]:
    """Make the studies of these plans, those that are not there yet.

    Raises:
        UsageError: a study of that name is there, and it is not this comparison.
    """
    shelf = open_checkpoints(settings.weights)
    digests = [weights.pin(shelf, one.tensors, one.head, one.classes) for one in plans]
    specs = [
        study_file.build(_pinned(one.spec, digest), one.spec.name) for one, digest in zip(plans, digests, strict=True)
    ]
    there = study_names(database)
    for one, digest in zip(plans, digests, strict=True):  # all are looked at before one is made
        if one.spec.name in there:
            _same(load_study(database, one.spec.name), one, digest)
    for one, digest, spec in zip(plans, digests, specs, strict=True):
        if spec.name not in there:
            link = {"kind": KIND, "export": digest, "layers": [asdict(fate) for fate in one.layers]}
            create_study(database, spec, spec.name, attributes={confirm.LINK_KEY: json.dumps(link)})
    return [load_study(database, spec.name) for spec in specs]


def _suit(metrics: Metrics, target: DataSet, where: str | Path) -> None:
    channels = target.train_images.shape[1]
    if channels != metrics.preprocessing.channels:
        raise UsageError(
            f"--data {target.name}: has images of {channels} channel(s), and the network of {where} was trained on "
            f"{metrics.preprocessing.channels}; choose a data set with as many"
        )


def _fates(metrics: Metrics, target: DataSet, native: int | None, start: Start) -> tuple[list[Fate], int]:
    """What becomes of each layer, and how many layers the adapted network has."""
    fields = {**metrics.configuration, "native_size": native}
    constructor = catalogue.load("hpsearch.models", metrics.model.name)
    channels, height, width = target.train_images.shape[1:]
    model = build_model(Recipe(**fields), (channels, height, width), len(target.classes), constructor)
    return fates(model, start), len(layers(model))


def _spec(
    metrics: Metrics, data: str, size: int, num_seeds: int, fixed: Mapping[str, Any], num_layers: int
) -> StudySpec:
    """The comparison: whole network, head alone, head first, and from scratch."""
    body, epochs = num_layers - 1, fixed["epochs"]
    plain = {key: value for key, value in fixed.items() if not key.startswith("frozen") and key != "start"}
    thawed = {"frozen_layers": body, "frozen_epochs": max(1, epochs // THAW_SHARE), "frozen_rate": THAW_RATE}
    candidates = [
        {"label": "transfer", "start": "export"},
        {"label": "transfer, head only", "start": "export", "frozen_layers": body, "frozen_epochs": epochs},
        {"label": "transfer, head first", "start": "export", **thawed},
        {"label": SCRATCH, "start": "scratch"},
    ]
    target = re.sub(r"[^A-Za-z0-9]+", "-", data.rstrip("/").rpartition("/")[2]).strip("-")
    tables = {
        "name": derived(f"{metrics.model.name}-to-{target}", f"-{size}"),
        "description": f"{metrics.model.name} from {metrics.data.name} to {data}, against training from scratch",
        "seeds": num_seeds,
        "model": {"name": metrics.model.name, "export": "to be pinned"},
        "data": {"name": data, "image_size": size},
        "training": plain,
        "objective": {"metric": metrics.metric},
        "candidate": candidates,
    }
    return study_file.build(tables, f"the transfer to {data}")


def _pinned(spec: StudySpec, digest: str) -> dict[str, Any]:
    tables = spec.to_tables()
    return {**tables, "model": {**tables["model"], "export": digest}}


def _same(study: LoadedStudy, wanted: Plan, digest: str) -> None:
    spec = study.spec
    other = "from another export" if spec.model.export != digest else f"with the data {spec.data.name}"
    if spec.model.export != digest or spec.data.name != wanted.spec.data.name:
        raise UsageError(f"study {study.name}: is there already, {other}; choose another storage with --storage")
    for option, asked, there in (
        ("--seeds", wanted.num_seeds, len(spec.seeds)),
        ("--epochs", wanted.epochs, spec.max_epochs),
    ):
        if asked not in (None, there):
            raise UsageError(
                f"{option} {asked}: study {study.name} exists already, with {there}, and that is not changed; "
                "leave the option out to see the result"
            )
