"""Exports: a configuration, its weights and the evidence in a folder, or in S3, whose claims can be checked.

config.toml          a study file that trains the same again
model.safetensors    the weights
metrics.json         what is claimed, by docs/export.schema.json
README.md            the model card
SHA256SUMS           of the other four; `sha256sum -c SHA256SUMS`
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hpsearch import catalogue, confirm, weights
from hpsearch.claims import claims
from hpsearch.data import DATASETS
from hpsearch.data.images import split_name
from hpsearch.errors import HpsearchError, UsageError, no_room
from hpsearch.export_schema import CARD, CONFIG, FILES, METRICS, MODEL, SCHEMA_VERSION, SUMS, Metrics
from hpsearch.model_card import card, config
from hpsearch.models import MODELS
from hpsearch.models.build import build_model
from hpsearch.pictures import Folder, Shelf
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage.checkpoints import open_checkpoints, open_shelf
from hpsearch.storage.open import Database
from hpsearch.storage.openings import openings
from hpsearch.storage.s3 import SCHEME
from hpsearch.storage.studies import LoadedStudy
from hpsearch.train.freezing import layers
from hpsearch.trained import Say, choose, data_of, network, recipe_of

LARGEST = 2**30  # bytes of a file that is read: a claim of more is no export of a small network


# Writing


def export(
    database: Database, study: LoadedStudy, rank: int, where: str | Path, settings: Settings, say: Say
) -> Metrics:
    """Write the study's `rank`-th best configuration to a folder or to s3://BUCKET/PREFIX, whole or not at all.

    Raises:
        UsageError: something is there already, or the study has no such configuration yet.
        DataError: the images are not those that the study's trials saw.
        HpsearchError: S3 cannot be reached.
    """
    shelf = open_shelf(where)
    with _reaching(where):
        if shelf.path.exists() if isinstance(shelf, Folder) else shelf.get(SUMS) is not None:
            raise UsageError(f"{where}: exists already; an export is never written over, so name another folder")
    if isinstance(shelf, Folder):
        there = next(folder for folder in shelf.path.absolute().parents if folder.exists())
        if not there.is_dir():  # found out before the network trains again
            raise UsageError(f"{where}: cannot be written ({there} is a file); name another folder")
        if not os.access(there, os.W_OK):
            raise UsageError(f"{where}: cannot be written ({there} is read-only here); name another folder")
    chosen = choose(database, study, confirmed=False, say=say)
    if rank > len(chosen):
        raise UsageError(f"--rank {rank}: study {study.name} has {len(chosen)} configurations to choose from")
    one = chosen[rank - 1]
    dataset = data_of(one.study, settings)
    found = network(one.study, one.middle, dataset, settings, say)
    searched = confirm.searched(database, study)
    looks = openings(database, searched)
    metrics = claims(study, one, rank, dataset, found, looks)
    files = {
        CONFIG: config(one.study.spec, recipe_of(one.middle)).encode(),
        MODEL: save_tensors(_alone(found.model.state_dict())),
        METRICS: (json.dumps(metrics.model_dump(), indent=1) + "\n").encode(),
        CARD: card(metrics, opened=None if confirm.orphaned(database, study) else bool(looks)).encode(),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    files[SUMS] = sums.encode()  # the last one: without it nothing counts as an export
    if isinstance(shelf, Folder):
        _write(shelf.path, files)
    else:
        with _reaching(where):
            for name, content in files.items():
                shelf.put(name, content)
    return metrics


def _alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, as safetensors refuses tensors that share memory, which tied weights do."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


@contextmanager
def _reaching(where: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if str(where).startswith(SCHEME):
            raise HpsearchError(f"{where}: {error.strerror or error}; try again once that is mended") from error
        if no_room(error):
            raise HpsearchError(f"{where}: {error.strerror}; make room and run the command again") from error
        raise UsageError(f"{where}: cannot be written ({error.strerror}); name another folder") from error


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """All files, or no folder."""
    with _reaching(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                (work / name).write_bytes(content)
            work.chmod(0o755)
            os.rename(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


# Reading


def read(where: str | Path) -> tuple[Metrics, StudySpec, dict[str, Tensor]]:
    """The parts of an export in a folder or in S3, checked: checksums, schema, study file, that weights can be read.

    Raises:
        UsageError: there is no export, it is damaged, or of a newer hpsearch.
        HpsearchError: S3 cannot be reached.
    """
    return parts(where, contents(where))


def contents(where: str | Path) -> dict[str, bytes]:
    """The files of an export by their names, their checksums checked. Raises as `read`."""
    shelf = open_shelf(where)
    if isinstance(shelf, Folder) and not os.path.isdir(shelf.path):  # Path.is_dir raises for a name that is too long
        raise UsageError(f"{where}: there is no such folder; give the folder that `hpsearch export -o` wrote")
    sums = _sums(where, _got(shelf, where, SUMS))
    return {name: _checked(f"{where}/{name}", _got(shelf, where, name), sums[name]) for name in FILES}


def parts(where: str | Path, files: Mapping[str, bytes]) -> tuple[Metrics, StudySpec, dict[str, Tensor]]:
    """What these files say, as far as they agree before anything is built or decoded. Raises UsageError."""
    metrics = _parse_metrics(where, files[METRICS])
    try:
        text = files[CONFIG].decode()
        tensors = load_tensors(files[MODEL])
    except Exception as error:
        raise UsageError(f"{where}: {MODEL} or {CONFIG} cannot be read ({error}); export again") from error
    try:
        spec = parse(text, f"{where}/{CONFIG}")
    except RecursionError as error:
        raise UsageError(f"{where}/{CONFIG}: is nested too deeply for a study file; export again") from error
    if mistakes := catalogue.check_names(spec):
        raise UsageError(f"{where}/{CONFIG}: {'; '.join(mistakes)}")
    own, stated = spec.data, metrics.preprocessing.image_size
    resizes = (
        split_name(own.name)[0] in DATASETS
    )  # a reader of one's own may give images of another size than asked for
    if own.name != metrics.data.name or (resizes and own.image_size != stated):
        raise UsageError(
            f"{where}: {CONFIG} and {METRICS} name different images, {own.name} at {own.image_size} pixels and "
            f"{metrics.data.name} at {stated}; export again"
        )
    return metrics, spec, tensors


def _got(shelf: Shelf, where: str | Path, name: str) -> bytes:
    try:
        content = shelf.get(name, LARGEST + 1)
    except OSError as error:
        if not isinstance(shelf, Folder):
            raise HpsearchError(f"{where}/{name}: {error}; try again once that is mended") from error
        raise UsageError(f"{where}/{name}: cannot be read ({error.strerror}); export again") from error
    if content is None:
        raise UsageError(f"{where}/{name}: cannot be read (it is not there); export again")
    if len(content) > LARGEST:
        raise UsageError(f"{where}/{name}: is larger than an export's file may be ({LARGEST} bytes); export again")
    return content


def _sums(where: str | Path, content: bytes) -> dict[str, str]:
    try:
        lines = content.decode().splitlines()
        found = {name.strip(): digest for digest, _, name in (line.partition("  ") for line in lines)}
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}/{SUMS}: cannot be read, so nothing can be checked; export again") from error
    if missing := [name for name in FILES if name not in found]:
        raise UsageError(f"{where}/{SUMS}: does not name {', '.join(missing)}; export again")
    return found


def _checked(path: str, content: bytes, digest: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != digest:
        raise UsageError(f"{path}: is not what was exported (its SHA-256 sum differs from {SUMS}); export again")
    return content


def _parse_metrics(where: str | Path, content: bytes) -> Metrics:
    try:
        fields = json.loads(content)
        number = fields.get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{where}/{METRICS}: is no JSON object ({error}); export again") from error
    if isinstance(number, int) and number > SCHEMA_VERSION:
        raise UsageError(
            f"{where}/{METRICS}: schema_version = {number} is newer than this hpsearch knows ({SCHEMA_VERSION}); "
            "install a newer hpsearch"
        )
    try:
        return Metrics.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}/{METRICS}: {place}: {first['msg']}; see docs/export.schema.json") from error


def build(metrics: Metrics, tensors: Mapping[str, Tensor], where: str | Path) -> nn.Module:
    """The network with its weights, ready to predict.

    Raises:
        UsageError: the weights are not those of the network.
    """
    try:
        if metrics.model.name in MODELS:  # sizes that a file states may fill no memory, unless its weights do
            with torch.device("meta"):
                _compare(_made(metrics, where), tensors, metrics, where)
        model = _made(metrics, where)
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch: no such sizes, or no room for them
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{where}/{METRICS}: {metrics.model.name} cannot be built in these sizes ({reason}); export again"
        ) from error
    _compare(model, tensors, metrics, where)
    model.load_state_dict(dict(tensors))
    return model.eval()


def _made(metrics: Metrics, where: str | Path, more: int = 0) -> nn.Module:
    """The network as it begins, for the export's classes or some more."""
    prepared, constructor = metrics.preprocessing, catalogue.load("hpsearch.models", metrics.model.name)
    shape = (prepared.channels, prepared.image_size, prepared.image_size)
    return build_model(recipe_in(metrics, where), shape, len(metrics.model.classes) + more, constructor)


def head(model: nn.Module, metrics: Metrics, where: str | Path) -> str:
    """The layer of an export's network whose outputs stand for the classes: the last, as layers are frozen in order.

    Raises:
        UsageError: the number of classes decides the size of another layer, or of none.
    """
    with torch.device("meta") if metrics.model.name in MODELS else nullcontext():
        wider = {name: tensor.shape for name, tensor in _made(metrics, where, 1).state_dict().items()}
    own = model.state_dict().items()
    following = {name.rpartition(".")[0] for name, tensor in own if tensor.shape != wider.get(name)}
    last = layers(model)[-1][0]
    if not last or following != {last}:
        found = ", ".join(name or "the network itself" for name in sorted(following)) or "no layer"
        raise UsageError(
            f"{where}: the number of classes decides the size of {found} in the model {metrics.model.name}, and its "
            f"last layer is {last or 'the network itself'}; to be carried over, it must make its one output layer last"
        )
    return last


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], metrics: Metrics, where: str | Path) -> None:
    """Raise UsageError unless the weights have the network's names and shapes."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != given:
        differ = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise UsageError(
            f"{where}/{MODEL}: {', '.join(differ)} do not fit the model {metrics.model.name}; export again"
        )


def recipe_in(metrics: Metrics, where: str | Path) -> Recipe:
    try:
        return Recipe(**metrics.configuration)
    except TypeError as error:  # hyperparameters of a later hpsearch, or one that is missing
        known = {field.name for field in fields(Recipe)}
        foreign = ", ".join(sorted(metrics.configuration.keys() - known))
        problem = f"has {foreign}, which this hpsearch does not know; install a newer one" if foreign else str(error)
        raise UsageError(f"{where}/{METRICS}: configuration: {problem}") from error


def pinned(spec: StudySpec, settings: Settings) -> StudySpec:
    """The study with the weights of its export taken among the kept ones, so that they cannot change under it."""
    name = spec.model.export
    if name is None or name.startswith(weights.PINNED):
        return spec
    metrics, _, tensors = read(name)
    output = head(build(metrics, tensors, name), metrics, name)
    digest = weights.pin(open_checkpoints(settings.weights), tensors, output, metrics.model.classes)
    return replace(spec, model=spec.model.model_copy(update={"export": digest}))
