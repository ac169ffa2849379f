"""A real S3 server for the tests, on loopback: moto's, in a thread; it can be stopped and started again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "hpsearch"


class S3Server:
    """One server with one bucket; what it holds lives as long as the process."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """For AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def client(self) -> Any:
        """boto3's own client, past hpsearch."""
        return boto3.client("s3", endpoint_url=self.url)

    def start(self) -> None:
        """Start, or start again on the same port."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Refuse every connection from now on."""
        self._server.stop()
        assert self._server._server is not None
        self._server._server.server_close()

    def names(self) -> list[str]:
        """Every object of the bucket."""
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]

    def change(self, name: str, *, cut: int = 0) -> None:
        """Alter the last byte of an object, or cut some off."""
        content = bytearray(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())
        content[-1] ^= 1
        self.client.put_object(Bucket=BUCKET, Key=name, Body=bytes(content[:-cut] if cut else content))


@contextmanager
def running_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with an empty bucket; the environment points boto3 to it, with credentials that are worth nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = S3Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    try:
        server.client.create_bucket(Bucket=BUCKET)
        yield server
        for name in server.names():
            server.client.delete_object(Bucket=BUCKET, Key=name)
        server.client.delete_bucket(Bucket=BUCKET)
    finally:
        server.stop()
