"""`hpsearch dashboard` as a process: what it prints, and what it asks of those who come."""

import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

from tests.cli.running import hpsearch, start
from tests.postgres import free_port
from tests.studies import TINY

PORT = str(free_port())


def status(path: str, host: str = f"127.0.0.1:{PORT}") -> int:
    """The status of one answer."""
    asked = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_another_host_prints_a_token_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    process = start(tmp_path, "dashboard", "--host", "0.0.0.0", "--port", PORT)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert f"http://{socket.gethostname()}:{PORT}/hpsearch/ (read-only" in lines[0]  # an address that leads here
        token = lines[1].removeprefix("token: ").strip()
        assert len(token) >= 32
        assert status("/hpsearch/") == status("/api/studies") == 401
        assert status("/hpsearch/sign-in") == 200
        assert status("/hpsearch/sign-in", "evil.example") == 403
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert token not in output + errors


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """By a handler: a process without one is ended by the signal, or as the first of a container not at all."""
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    process = start(tmp_path, "dashboard", "--port", PORT)
    assert process.stdout is not None
    assert "read-only" in process.stdout.readline()
    assert status("/hpsearch/") == 200
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_what_cannot_be_served(tmp_path: Path) -> None:
    assert "holds no studies yet" in hpsearch(tmp_path, "dashboard", code=2).stderr
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    elsewhere = hpsearch(tmp_path, "dashboard", "--host", "203.0.113.7", "--port", PORT, code=2).stderr
    assert "--host 203.0.113.7" in elsewhere
    assert "choose another" in elsewhere
    short = hpsearch(tmp_path, "dashboard", code=2, HPSEARCH_DASHBOARD_TOKEN="short").stderr
    assert "at least 12" in short
