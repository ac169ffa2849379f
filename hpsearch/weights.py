"""Trained weights that outlive their trial: of trials over seeds, and of exports that others start from.

They are kept as checkpoints are, as safetensors with a hash of their content, and never deleted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hpsearch.artifacts import Checkpoints
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.models.takeover import Start

PINNED = "sha256:"  # begins the name of an export whose weights were taken into the store
ABOUT = "about"  # the key of the file's header
LAST = 10**6  # no trial has so many epochs


def keep(place: Checkpoints, key: str, state: Mapping[str, Tensor | int]) -> None:
    """Keep the weights of a trial's state; raises OSError if they cannot be written."""
    model = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in model.items()}
    place.save(key, 0, save(tensors))


def kept(place: Checkpoints, key: str) -> dict[str, Tensor] | None:
    """The weights of a trial; None if they are not there, or damaged. Raises HpsearchError if nobody can tell."""
    with _reaching(place):
        content = next((content for _, content in place.load(key, LAST)), None)
    return None if content is None else load(content)


def pin(place: Checkpoints, tensors: Mapping[str, Tensor], head: str, classes: Sequence[str]) -> str:
    """Take the weights of an export into the place; the name by which studies refer to them.

    `head` is the layer whose outputs stand for `classes`. Raises HpsearchError if they cannot be
    written.
    """
    content = save(dict(tensors), metadata={ABOUT: json.dumps({"head": head, "classes": list(classes)})})
    digest = hashlib.sha256(content).hexdigest()
    with _reaching(place):
        place.save(f"export-{digest}", 0, content)
    return f"{PINNED}{digest}"


def of_export(place: Checkpoints, name: str, classes: Sequence[str]) -> Start:
    """The weights of a pinned export, for a network of these classes: what has the sum that is its name, nothing else.

    Raises:
        UsageError: they are not there.
        HpsearchError: the place cannot be reached.
    """
    digest = name.removeprefix(PINNED)
    with _reaching(place):
        stored = place.load(f"export-{digest}", LAST) if name.startswith(PINNED) else ()
        content = next((content for _, content in stored if hashlib.sha256(content).hexdigest() == digest), None)
    if content is None:
        raise UsageError(
            f"model.export = {name!r}: its weights are not in {place.place}; copy that folder from the machine on "
            "which the study was created, give both one place (HPSEARCH_ARTIFACTS), or create the study here"
        )
    about = _about(content)
    return Start(load(content), "" if about["classes"] == list(classes) else about["head"])


@contextmanager
def _reaching(place: Checkpoints) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HpsearchError(f"weights in {place.place}: {error}; try again once that is mended") from error


def _about(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][ABOUT])
    return found
