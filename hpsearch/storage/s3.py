"""Objects below a prefix of an S3 bucket, which other machines share; boto3's own settings say where and who.

That is AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on, or its files. A request is tried a few times within bounds, and
what S3 answers otherwise becomes an OSError with one sentence, as if the place were a folder.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from optuna.artifacts import Boto3ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpsearch.errors import UsageError

SCHEME = "s3://"
ATTEMPTS = 3  # of one request, the first included; then training goes on without it
CONNECT_SECONDS, READ_SECONDS = 5, 20  # what one attempt may take; three of them stay within a lease


class Bucket:
    """The objects below s3://BUCKET/PREFIX; also one of Optuna's artifact stores.

    Raises:
        UsageError: the URL has another form, boto3 is not installed, or cannot be used as it is set up.
    """

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if not url.startswith(SCHEME) or not bucket:
            raise UsageError(f"{url}: must be {SCHEME}BUCKET/PREFIX")
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = _client(url)
        self._store = Boto3ArtifactStore(bucket, self._client, avoid_buf_copy=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{SCHEME}{self._bucket}/{self._prefix}"

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; raises OSError."""
        with self.os_errors():
            self.write(name, io.BytesIO(content))

    def get(self, name: str, num_bytes: int | None = None) -> bytes | None:
        """An object, or its beginning; None if there is none. Raises OSError."""
        with self.os_errors():
            try:
                body = self.open_reader(name)
            except ArtifactNotFound:
                return None
            with body:
                return body.read(num_bytes) if num_bytes else body.read()

    def delete(self, name: str) -> None:
        """Delete an object, if there is one; raises OSError."""
        with self.os_errors():
            self.remove(name)

    def names(self, beginning: str = "") -> Iterator[str]:
        """The names that begin so, asked a thousand at a time; raises OSError."""
        with self.os_errors():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + beginning):
                yield from (entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", ()))

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See Optuna's ArtifactStore."""
        return self._store.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """See Optuna's ArtifactStore."""
        self._store.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """See Optuna's ArtifactStore."""
        self._store.remove(self._prefix + artifact_id)

    @contextmanager
    def os_errors(self) -> Iterator[None]:
        """Whatever S3 answers becomes an OSError."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise OSError(f"{self.url} cannot be used: {' '.join(str(error).split())}") from error


def _client(url: str) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError(f"{url}: needs boto3; run `pip install '.[s3]'`") from error
    config = Config(
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # boto3's own checksums are refused by some servers that speak S3; what must be whole carries its own hash.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"{url}: boto3 cannot be used as it is set up: {error}") from error
