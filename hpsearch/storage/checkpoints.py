"""Where checkpoints are: from the setting HPSEARCH_ARTIFACTS to a folder, or to S3 through Optuna's artifact store.

An artifact store overwrites an object whole or not at all, and lists nothing. So each trial has two slots in S3, which
are written by turns, and each begins with a line of JSON that tells its epoch and the hash of what follows.
"""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.artifacts import Boto3ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpsearch.artifacts import Checkpoints, FolderCheckpoints, digest
from hpsearch.errors import UsageError

SCHEME = "s3://"
SLOTS = ("0", "1")
HEADER_BYTES = 128  # of the JSON line, filled up with spaces
ATTEMPTS = 3  # of one request, the first included; then training goes on without this checkpoint
CONNECT_SECONDS, READ_SECONDS = 5, 20  # what one attempt may take; three of them stay within a lease


def open_checkpoints(place: str) -> Checkpoints:
    """The place for checkpoints that the settings name: a folder, or s3://BUCKET/PREFIX.

    Raises:
        UsageError: it has another form, or the package for S3 is missing.
    """
    if place.startswith(SCHEME):
        bucket, _, prefix = place.removeprefix(SCHEME).partition("/")
        if bucket:
            return S3Checkpoints(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")
    elif "://" not in place:
        return FolderCheckpoints(Path(place).expanduser())
    raise UsageError(f"HPSEARCH_ARTIFACTS={place}: must be a folder or s3://BUCKET/PREFIX")


class S3Checkpoints:
    """Checkpoints below a prefix of an S3 bucket; boto3's own settings say where and who: AWS_ENDPOINT_URL and so on.

    Raises:
        UsageError: boto3 is not installed, or cannot be used as it is set up.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._client = _client()
        self._store = Boto3ArtifactStore(bucket, self._client, avoid_buf_copy=True)

    @property
    def place(self) -> str:
        """The URL."""
        return f"{SCHEME}{self._bucket}/{self._prefix}"

    def save(self, key: str, epoch: int, content: bytes) -> None:
        """See `Checkpoints`: into a slot that is empty or damaged, or of this epoch or a later one, else the older."""
        with _os_errors(self.place):
            known = {slot: self._epoch(key, slot) for slot in SLOTS}
            slot = min(SLOTS, key=lambda slot: -1.0 if known[slot] >= epoch else known[slot])
            self._store.write(self._name(key, slot), io.BytesIO(_header(epoch, content) + content))

    def load(self, key: str, last_epoch: int) -> Iterator[tuple[int, bytes]]:
        """See `Checkpoints`."""
        with _os_errors(self.place):
            found = sorted((self._epoch(key, slot), slot) for slot in SLOTS if self._holds(key, slot))
        for epoch, slot in reversed(found):
            with _os_errors(self.place):
                content = self._verified(key, slot) if 0 <= epoch <= last_epoch else None
                if content is None:
                    self._store.remove(self._name(key, slot))
            if content is not None:
                yield int(epoch), content

    def forget(self, key: str) -> None:
        """See `Checkpoints`."""
        with suppress(OSError), _os_errors(self.place):
            for slot in SLOTS:
                self._store.remove(self._name(key, slot))

    def keys(self, prefix: str) -> list[str]:
        """See `Checkpoints`; asked of S3 itself, a thousand names at a time."""
        start = self._prefix + prefix
        with _os_errors(self.place):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            names = [entry["Key"].removeprefix(self._prefix) for page in pages for entry in page.get("Contents", ())]
        return sorted({name.partition("/")[0] for name in names if name.endswith(SLOTS)})

    def damaged(self, key: str) -> list[str]:
        """See `Checkpoints`."""
        with _os_errors(self.place):
            held = [slot for slot in SLOTS if self._holds(key, slot)]
            return [f"{key}/{slot}" for slot in held if self._verified(key, slot) is None]

    def _name(self, key: str, slot: str) -> str:
        return f"{self._prefix}{key}/{slot}"

    def _holds(self, key: str, slot: str) -> bool:
        return self._read(key, slot, 1) is not None

    def _epoch(self, key: str, slot: str) -> float:
        """The epoch of a slot by its first line; -inf if it is empty or damaged."""
        return _parsed(self._read(key, slot, HEADER_BYTES) or b"")[0]

    def _verified(self, key: str, slot: str) -> bytes | None:
        """What a slot holds, without its first line; None if it is empty or damaged."""
        stored = self._read(key, slot, None) or b""
        content = stored[HEADER_BYTES:]
        return content if _parsed(stored)[1] == digest(content) else None

    def _read(self, key: str, slot: str, num_bytes: int | None) -> bytes | None:
        """The beginning of a slot, or all of it; None if it is empty."""
        try:
            body = self._store.open_reader(self._name(key, slot))
        except ArtifactNotFound:
            return None
        with body:
            return body.read(num_bytes) if num_bytes else body.read()


def _header(epoch: int, content: bytes) -> bytes:
    return json.dumps({"epoch": epoch, "blake2b": digest(content)}).encode().ljust(HEADER_BYTES - 1) + b"\n"


def _parsed(stored: bytes) -> tuple[float, str]:
    try:
        header = json.loads(stored[:HEADER_BYTES])
        return int(header["epoch"]), str(header["blake2b"])
    except (ValueError, KeyError, TypeError):
        return -math.inf, ""


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError("HPSEARCH_ARTIFACTS=s3://…: needs boto3; run `pip install 'hpsearch[s3]'`") from error
    config = Config(
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # boto3's own checksums are refused by some servers that speak S3; a checkpoint carries its own hash.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"HPSEARCH_ARTIFACTS=s3://…: boto3 cannot be used as it is set up: {error}") from error


@contextmanager
def _os_errors(place: str) -> Iterator[None]:
    """Whatever S3 answers becomes an OSError with one sentence, as if the place were a folder."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise OSError(f"{place} cannot be used: {' '.join(str(error).split())}") from error
