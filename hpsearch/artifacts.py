"""Checkpoints in a folder: written whole or not at all, verified when read, and only the last two of each trial.

A file is called `<epoch>-<hash>.safetensors`, where the hash is that of its content: a file that is damaged, cut off or
renamed does not match its name and is passed over. Beside them: pictures of trials, as optuna-dashboard shows them.
"""

import contextlib
import hashlib
import json
import mimetypes
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEPT = 2  # the newest, and the one before it in case that is damaged
SUFFIX = ".safetensors"
ARTIFACT_KEY = "artifacts:"  # Optuna's own: a trial's system attribute that names one of its files
ARTIFACT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_ARTIFACT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of all trials below `folder`, which workers on other machines may share.

    A `key` names a trial; it must differ for trials that do not train the same thing.
    """

    folder: Path

    @property
    def place(self) -> str:
        """Where they are, for messages."""
        return str(self.folder)

    def save(self, key: str, epoch: int, content: bytes) -> None:
        """Write a checkpoint and forget all but the last two.

        Raises:
            OSError: the folder is full or cannot be written; what was there before is untouched.
        """
        place = self.folder / key
        place.mkdir(parents=True, exist_ok=True)
        name = f"{epoch:06d}-{_hash(content)}{SUFFIX}"
        _write_whole(place / name, content)
        for old in self._files(key)[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, key: str, last_epoch: int) -> Iterator[tuple[int, bytes]]:
        """The undamaged checkpoints up to `last_epoch`, the newest first, with their epochs."""
        for path in self._files(key):
            epoch, _, digest = path.stem.partition("-")
            if int(epoch) > last_epoch:
                continue
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if _hash(content) == digest:
                    yield int(epoch), content

    def forget(self, key: str) -> None:
        """Delete a trial's checkpoints."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _files(self, key: str) -> list[Path]:
        return sorted((self.folder / key).glob(f"[0-9]*-*{SUFFIX}"), reverse=True)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # else the new name may not survive a loss of power
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Pictures:
    """Files that belong to trials, below `folder`, as optuna-dashboard finds them: named by random ids."""

    folder: Path

    def save(self, name: str, content: bytes) -> tuple[str, str]:
        """Write one file whole; the key and the value of the trial's system attribute that leads to it.

        Raises:
            OSError: the folder is full or cannot be written.
        """
        artifact_id = str(uuid.uuid4())
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self.folder / artifact_id, content)
        kind, encoding = mimetypes.guess_type(name)
        known = {"artifact_id": artifact_id, "filename": name, "mimetype": kind or "", "encoding": encoding}
        return f"{ARTIFACT_KEY}{artifact_id}", json.dumps(known)

    def load(self, artifact_id: str) -> bytes | None:
        """The file of that id, if it is there and no larger than it should be."""
        if not ARTIFACT_ID.fullmatch(artifact_id):
            return None
        with contextlib.suppress(OSError):
            path = self.folder / artifact_id
            if path.stat().st_size <= MAX_ARTIFACT_BYTES:
                return path.read_bytes()
        return None
