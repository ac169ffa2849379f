"""Checkpoints: what every place for them can do, and the one in a folder. Another one, in S3: `storage/checkpoints.py`.

A checkpoint is written whole or not at all, carries a hash of its content, and is verified when it is read; of each
trial the last two are kept. In a folder, a file is called `<epoch>-<hash>.safetensors`: one that is damaged, cut off or
renamed does not match its name.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

KEPT = 2  # the newest, and the one before it in case that is damaged
SUFFIX = ".safetensors"


def key_of(recipe: Mapping[str, Any], fingerprint: str, created: str) -> str:
    """The name of what a trial trained: two share it only if they train the same thing on the same data."""
    return digest(json.dumps([recipe, fingerprint, created], sort_keys=True).encode())


class Checkpoints(Protocol):
    """The checkpoints of all trials, which workers on other machines may share. A key is made by `trial_key`."""

    @property
    def place(self) -> str:
        """Where they are, for messages."""

    def save(self, key: str, epoch: int, content: bytes) -> None:
        """Write a checkpoint, and keep one before it at most; later ones stay, which others may have written since.

        Raises:
            OSError: there is no room, or the place cannot be reached or written; what was there before is untouched.
        """

    def load(self, key: str, last_epoch: int) -> Iterator[tuple[int, bytes]]:
        """The undamaged checkpoints up to `last_epoch`, the newest first, with their epochs.

        Those that are passed over, damaged or of a later epoch, are deleted: the trial will write that epoch again.

        Raises:
            OSError: the place cannot be reached, or its files not be read.
        """

    def forget(self, key: str) -> None:
        """Delete a trial's checkpoints; a place that cannot be reached keeps them until `hpsearch fsck --repair`."""

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so and have something stored.

        Raises:
            OSError: the place cannot be reached.
        """

    def damaged(self, key: str) -> list[str]:
        """The names of a trial's checkpoints whose content does not match their hash.

        Raises:
            OSError: the place cannot be reached.
        """


def study_prefix(name: str, created: str) -> str:
    """What the keys of a study's trials begin with; `created` tells it from an older study of the same name."""
    return f"{digest(f'{name} {created}'.encode())[:16]}-"


def trial_key(prefix: str, number: int, identity: Any) -> str:
    """The key of a trial. `identity`, plain JSON values, is all that decides what it trains, and on which data."""
    return f"{number_prefix(prefix, number)}{digest(json.dumps(identity, sort_keys=True).encode())[:16]}"


def number_prefix(prefix: str, number: int) -> str:
    """What the key of trial `number` begins with."""
    return f"{prefix}{number:06d}-"


def trial_number(key: str) -> int:
    """The number of the trial that the key was made for."""
    return int(key.split("-")[1])


def digest(content: bytes) -> str:
    """32 hexadecimal digits that change with the content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class FolderCheckpoints:
    """Checkpoints below a folder, local or shared."""

    folder: Path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def save(self, key: str, epoch: int, content: bytes) -> None:
        """See `Checkpoints`: a temporary file, synchronised to the disk, then renamed."""
        place = self.folder / key
        place.mkdir(parents=True, exist_ok=True)
        name = f"{epoch:06d}-{digest(content)}{SUFFIX}"
        temporary = place / f".{uuid.uuid4()}.part"  # not of `tempfile`, whose files are for one user alone
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(place)
        for old in [path for path in self._files(key) if _epoch(path) <= epoch][KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, key: str, last_epoch: int) -> Iterator[tuple[int, bytes]]:
        """See `Checkpoints`."""
        for path in self._files(key):
            try:
                epoch, content = _epoch(path), path.read_bytes()
            except PermissionError:
                raise
            except OSError:
                continue
            if epoch <= last_epoch and _matches(path, content):
                yield epoch, content
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    def forget(self, key: str) -> None:
        """See `Checkpoints`."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def keys(self, prefix: str) -> list[str]:
        """See `Checkpoints`."""
        return sorted(path.name for path in self.folder.glob(f"{prefix}*") if path.is_dir())

    def epochs(self, prefix: str) -> list[int]:
        """The epochs of what is stored under keys that begin so, the newest first, by the names alone."""
        return sorted((_epoch(path) for key in self.keys(prefix) for path in self._files(key)), reverse=True)

    def damaged(self, key: str) -> list[str]:
        """See `Checkpoints`."""
        return [f"{key}/{path.name}" for path in self._files(key) if not _matches(path, path.read_bytes())]

    def _files(self, key: str) -> list[Path]:
        return sorted((self.folder / key).glob(f"[0-9]*-*{SUFFIX}"), reverse=True)


def _epoch(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _matches(path: Path, content: bytes) -> bool:
    return path.stem.partition("-")[2] == digest(content)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # else the new name may not survive a loss of power
    finally:
        os.close(handle)
