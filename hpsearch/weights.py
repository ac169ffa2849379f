"""Trained weights that outlive their trial: of trials over seeds, and of exports that others start from.

They lie in HPSEARCH_HOME/weights, as safetensors files whose names hold the hash of their content.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hpsearch.artifacts import Checkpoints, FolderCheckpoints
from hpsearch.errors import UsageError
from hpsearch.models.takeover import Start

PINNED = "sha256:"  # begins the name of an export whose weights were taken into the store
ABOUT = "about"  # the key of the file's header
LAST = 10**6  # no trial has so many epochs


def store(home: Path) -> Checkpoints:
    return FolderCheckpoints(home / "weights")


def keep(home: Path, key: str, state: Mapping[str, Tensor | int]) -> None:
    """Keep the weights of a trial's state; raises OSError if they cannot be written."""
    model = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in model.items()}
    store(home).save(key, 0, save(tensors))


def kept(home: Path, key: str) -> dict[str, Tensor] | None:
    """The weights of a trial; None if they are not on this machine, or damaged."""
    for _, content in store(home).load(key, LAST):
        return load(content)
    return None


def pin(home: Path, tensors: Mapping[str, Tensor], head: str, classes: Sequence[str]) -> str:
    """Take the weights of an export into the store; the name by which studies refer to them.

    `head` is the layer whose outputs stand for `classes`.
    """
    content = save(dict(tensors), metadata={ABOUT: json.dumps({"head": head, "classes": list(classes)})})
    digest = hashlib.sha256(content).hexdigest()
    store(home).save(f"export-{digest}", 0, content)
    return f"{PINNED}{digest}"


def of_export(home: Path, name: str, classes: Sequence[str]) -> Start:
    """The weights of a pinned export, for a network of these classes.

    Raises:
        UsageError: they are not on this machine.
    """
    key = f"export-{name.removeprefix(PINNED)}"
    content = next((content for _, content in store(home).load(key, LAST)), None) if name.startswith(PINNED) else None
    if content is None:
        raise UsageError(
            f"model.export = {name!r}: its weights are not in {home / 'weights'}; copy that folder from the machine "
            "on which the study was created, or create the study here"
        )
    about = _about(content)
    return Start(load(content), "" if about["classes"] == list(classes) else about["head"])


def _about(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][ABOUT])
    return found
