"""Files that belong to trials, where optuna-dashboard finds them: named by random ids, led to by system attributes."""

import contextlib
import json
import mimetypes
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ARTIFACT_KEY = "artifacts:"  # Optuna's own: a trial's system attribute that names one of its files
ARTIFACT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_ARTIFACT_BYTES = 4 * 1024 * 1024


class Shelf(Protocol):
    """Where files lie by their names: a folder, or a bucket (`hpsearch.storage.s3`)."""

    def put(self, name: str, content: bytes) -> None:
        """Write one whole, or not at all; raises OSError."""

    def get(self, name: str, num_bytes: int | None = None) -> bytes | None:
        """One of them, or its beginning; None if it is not there. Raises OSError."""


@dataclass(frozen=True)
class Folder:
    """A folder, made when something is put into it."""

    path: Path

    def put(self, name: str, content: bytes) -> None:
        """See `Shelf`."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.part"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, name: str, num_bytes: int | None = None) -> bytes | None:
        """See `Shelf`."""
        try:
            with open(self.path / name, "rb") as file:
                return file.read(-1 if num_bytes is None else num_bytes)
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class Pictures:
    """The files of all trials on a shelf, which a dashboard on another machine may share."""

    shelf: Shelf

    def save(self, name: str, content: bytes) -> tuple[str, str]:
        """Write one file whole; the key and the value of the trial's system attribute that leads to it.

        Raises:
            OSError: the shelf is full or cannot be written.
        """
        artifact_id = str(uuid.uuid4())
        self.shelf.put(artifact_id, content)
        kind, encoding = mimetypes.guess_type(name)
        known = {"artifact_id": artifact_id, "filename": name, "mimetype": kind or "", "encoding": encoding}
        return f"{ARTIFACT_KEY}{artifact_id}", json.dumps(known)

    def load(self, artifact_id: str) -> bytes | None:
        """The file of that id, if it is there and no larger than it should be."""
        if not ARTIFACT_ID.fullmatch(artifact_id):
            return None
        with contextlib.suppress(OSError):
            content = self.shelf.get(artifact_id, MAX_ARTIFACT_BYTES + 1)
            return None if content is None or len(content) > MAX_ARTIFACT_BYTES else content
        return None
