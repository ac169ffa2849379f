"""Where checkpoints, weights and pictures are: from a setting to a folder, or to S3.

An object of S3 is overwritten whole or not at all. Each trial has two slots there, which are written by turns, and each
begins with a line of JSON that tells its epoch and the hash of what follows.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hpsearch.artifacts import Checkpoints, FolderCheckpoints, digest
from hpsearch.errors import UsageError
from hpsearch.pictures import Folder, Shelf
from hpsearch.storage.s3 import SCHEME, Bucket

SLOTS = ("0", "1")
HEADER_BYTES = 128  # of the JSON line, filled up with spaces


def open_checkpoints(place: str) -> Checkpoints:
    """The place for checkpoints, or for weights, that the settings name: a folder, or s3://BUCKET/PREFIX.

    Raises:
        UsageError: it has another form, or the package for S3 is missing.
    """
    if place.startswith(SCHEME) and place.removeprefix(SCHEME).partition("/")[0]:
        return S3Checkpoints(Bucket(place))
    if re.match(r"\w+:/", place):
        raise UsageError(f"HPSEARCH_ARTIFACTS={place}: must be a folder or s3://BUCKET/PREFIX")
    return FolderCheckpoints(Path(os.path.expanduser(place)))  # Path's own raises if there is no such user


def open_shelf(place: str | Path) -> Shelf:
    """A place for files, of pictures or of an export: a folder, or s3://BUCKET/PREFIX.

    Raises:
        UsageError: it has another form, or the package for S3 is missing.
    """
    return Bucket(str(place)) if str(place).startswith(SCHEME) else Folder(Path(os.path.expanduser(place)))


class S3Checkpoints:
    """Checkpoints in S3."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def place(self) -> str:
        """The URL."""
        return self._bucket.url

    def save(self, key: str, epoch: int, content: bytes) -> None:
        """See `Checkpoints`: into the slot of this epoch, else the one that is empty, damaged or older.

        If both are of later epochs nothing is written.
        """
        known = {slot: self._epoch(key, slot) for slot in SLOTS}
        free = [slot for slot in SLOTS if known[slot] <= epoch]
        if free:
            slot = min(free, key=lambda slot: -math.inf if known[slot] == epoch else known[slot])
            self._bucket.put(f"{key}/{slot}", _header(epoch, content) + content)

    def load(self, key: str, last_epoch: int) -> Iterator[tuple[int, bytes]]:
        """See `Checkpoints`."""
        found = sorted((self._epoch(key, slot), slot) for slot in SLOTS if self._holds(key, slot))
        for epoch, slot in reversed(found):
            content = self._verified(key, slot) if 0 <= epoch <= last_epoch else None
            if content is None:
                self._bucket.delete(f"{key}/{slot}")
            else:
                yield int(epoch), content

    def forget(self, key: str) -> None:
        """See `Checkpoints`."""
        with suppress(OSError):
            for slot in SLOTS:
                self._bucket.delete(f"{key}/{slot}")

    def keys(self, prefix: str) -> list[str]:
        """See `Checkpoints`."""
        return sorted({name.partition("/")[0] for name in self._bucket.names(prefix) if name.endswith(SLOTS)})

    def damaged(self, key: str) -> list[str]:
        """See `Checkpoints`."""
        held = [slot for slot in SLOTS if self._holds(key, slot)]
        return [f"{key}/{slot}" for slot in held if self._verified(key, slot) is None]

    def _holds(self, key: str, slot: str) -> bool:
        return self._bucket.get(f"{key}/{slot}", 1) is not None

    def _epoch(self, key: str, slot: str) -> float:
        """The epoch of a slot by its first line; -inf if it is empty or damaged."""
        return _parsed(self._bucket.get(f"{key}/{slot}", HEADER_BYTES) or b"")[0]

    def _verified(self, key: str, slot: str) -> bytes | None:
        """What a slot holds, without its first line; None if it is empty or damaged."""
        stored = self._bucket.get(f"{key}/{slot}") or b""
        content = stored[HEADER_BYTES:]
        return content if _parsed(stored)[1] == digest(content) else None


def _header(epoch: int, content: bytes) -> bytes:
    return json.dumps({"epoch": epoch, "blake2b": digest(content)}).encode().ljust(HEADER_BYTES - 1) + b"\n"


def _parsed(stored: bytes) -> tuple[float, str]:
    try:
        header = json.loads(stored[:HEADER_BYTES])
        return int(header["epoch"]), str(header["blake2b"])
    except (ValueError, KeyError, TypeError):
        return -math.inf, ""
