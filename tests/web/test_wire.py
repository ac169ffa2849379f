"""Hostile requests at a real socket: paths that climb, large headers and bodies, slow clients."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

from hpsearch.settings import Settings
from hpsearch.web import server
from tests.web.serving import serving


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/1/../../s.db",
        "/artifacts/1/..%2f..%2fs.db",
        "/artifacts/1/%2e%2e%2fs.db",
        "/static/../index.html",
        "/static/..%2f_app.py",
        "/hpsearch/static/../app.py",
        "/hpsearch/static/..%2fapp.py",
        "/hpsearch/static/%2fetc%2fpasswd",
        "/hpsearch/static/....//app.py",
    ],
)
def test_path_traversal(settings: Settings, path: str) -> None:
    with serving(settings) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        connection.request("GET", path)  # http.client sends the path as it is
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status in (400, 403, 404), (answer.status, body[:100])
        assert b"import" not in body
        assert b"SQLite" not in body
        connection.close()


def test_large_cookies_and_bodies(settings: Settings) -> None:
    with serving(settings) as address:
        host = address.removeprefix("http://")
        post = f"POST /hpsearch/sign-in HTTP/1.1\r\nHost: {host}\r\n"
        cookie = f"{post}Cookie: x=".ljust(server.MAX_HEADER_BYTES, "a")  # what is read before the answer, and no more

        def ask(request: str) -> bytes:
            with socket.create_connection(tuple(host.split(":")), timeout=20) as wire:  # type: ignore[arg-type]
                wire.sendall(request.encode())
                return wire.recv(100)

        assert b" 431 " in ask(cookie)
        assert b" 413 " in ask(f"{post}Content-Length: 10000000\r\n\r\n")
        answer = b" 431 "  # of ten million bytes most are never read, and the reset can come before the answer
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            answer = ask(cookie + "a" * 10_000_000)
        assert b" 431 " in answer
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", "/hpsearch/")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_slow_client_is_hung_up_on_and_hinders_nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 2)
    with serving(settings) as address:
        host = address.removeprefix("http://")
        ended = threading.Event()
        wires = [socket.create_connection(tuple(host.split(":")), timeout=20) for _ in range(20)]  # type: ignore[arg-type]

        def drip() -> None:
            try:
                for letter in f"GET /hpsearch/ HTTP/1.1\r\nHost: {host}\r\nX: {'a' * 200}":
                    for wire in wires:
                        wire.sendall(letter.encode())
                    time.sleep(0.1)
            except OSError:
                ended.set()

        thread = threading.Thread(target=drip)
        thread.start()
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", "/hpsearch/")
        assert connection.getresponse().status == 200
        connection.close()
        assert ended.wait(15)
        thread.join()
        for wire in wires:
            wire.close()
