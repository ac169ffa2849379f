"""Checkpoints in a folder: written whole or not at all, verified when read, and only the last two of each trial.

A file is called `<epoch>-<hash>.safetensors`, where the hash is that of its content: a file that is damaged, cut off or
renamed does not match its name and is passed over.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEPT = 2  # the newest, and the one before it in case that is damaged
SUFFIX = ".safetensors"


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
        handle, temporary = tempfile.mkstemp(dir=place, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(place)
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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # else the new name may not survive a loss of power
    finally:
        os.close(handle)
