"""hpsearch storage copy as a command: what it says, and what it refuses in one line."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from hpsearch.storage.open import create
from tests.cli.inside import hpsearch, one_line
from tests.cli.running import command, environment
from tests.cli.running import hpsearch as run
from tests.postgres import PostgresServer
from tests.storage.test_copy import rows
from tests.studies import TINY

PAGE = Path(__file__).parent.parent.parent / "storage" / "README.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a storage that holds one study, and nothing else."""
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    (tmp_path / "tiny.toml").unlink()
    return tmp_path


def test_by_arguments_and_by_environment(folder: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database().replace("hpsearch@", "hpsearch:s3cret@")  # trust: any password will do
    done = run(folder, "storage", "copy", HPSEARCH_STORAGE_TO=url)
    assert done.stdout.startswith("copied 1 study, 1 trial, ")
    assert done.stdout.endswith("every row is the same on both sides\n")
    back = hpsearch(folder, "storage", "copy", url, "sqlite:///back.db")
    assert back.stdout.splitlines()[0].split(" rows")[0] == done.stdout.split(" rows")[0]
    again = run(
        folder, "storage", "copy", "-", "-", code=2, HPSEARCH_STORAGE="sqlite:///back.db", HPSEARCH_STORAGE_TO=url
    )
    assert "holds studies already, 1 of them" in again.stderr
    assert "s3cret" not in done.stdout + done.stderr + back.stdout + back.stderr + again.stderr
    assert '"study": "tiny"' in hpsearch(folder, "list", "--json", "--storage", "sqlite:///back.db").stdout


def test_a_terminal_sees_how_far_it_is(folder: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    done = subprocess.run(
        command("storage", "copy", "-", "sqlite:///terminal.db"),
        cwd=folder,
        env=environment(folder) | {"TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "copy and compare" in shown
    assert "Traceback" not in shown
    assert done.stdout.startswith(b"copied 1 study")


def test_what_it_refuses(folder: Path, postgres: PostgresServer) -> None:
    before = sorted(folder.rglob("*"))
    ours, new = "sqlite:///storage/hpsearch.db", "sqlite:///new.db"
    password = "postgresql://me:s3cret@127.0.0.1:1/search"
    assert "HPSEARCH_STORAGE_TO" in one_line(folder, "storage", "copy")
    assert "as source and as destination" in one_line(folder, "storage", "copy", ours, ours)
    assert "as source and as destination" in one_line(folder, "storage", "copy", "-", f"sqlite:///{folder}/{ours[10:]}")
    assert "must be sqlite:///FILE" in one_line(folder, "storage", "copy", "-", "mysql://me:s3cret@host/search")
    assert "must be sqlite:///FILE" in one_line(folder, "storage", "copy", "redis://host/0", new)
    assert "in memory" in one_line(folder, "storage", "copy", "-", "sqlite:///:memory:")
    assert "holds no studies" in one_line(folder, "storage", "copy", "sqlite:///absent.db", new)
    assert "holds no studies" in one_line(folder, "storage", "copy", postgres.new_database(), new)
    for arguments in ((password, new), ("-", password)):
        line = one_line(folder, "storage", "copy", *arguments)
        assert "cannot be opened" in line
        assert "s3cret" not in line
    assert sorted(folder.rglob("*")) == before


def test_a_source_with_tables_but_no_study_and_a_destination_with_one(folder: Path, tmp_path: Path) -> None:
    create("sqlite:///" + str(tmp_path / "empty.db")).close()
    assert "there is nothing to copy" in one_line(folder, "storage", "copy", "sqlite:///empty.db", "sqlite:///new.db")
    assert not (tmp_path / "new.db").exists()
    hpsearch(folder, "storage", "copy", "-", "sqlite:///empty.db")  # tables alone are no hindrance
    assert "holds studies already, 1 of them" in one_line(folder, "storage", "copy", "-", "sqlite:///empty.db")


def test_a_sqlite_backup_is_restored_as_the_page_says(folder: Path) -> None:
    backup = folder / "backup.db"
    hpsearch(folder, "storage", "copy", "-", f"sqlite:///{backup}")
    kept = rows(f"sqlite:///{backup}")
    writing = (
        "import os, signal, sqlite3\nwriter = sqlite3.connect('storage/hpsearch.db')\n"
        "writer.execute('CREATE TABLE later AS SELECT randomblob(100000)')\nwriter.commit()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", writing], cwd=folder, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "storage" / "hpsearch.db-wal").stat().st_size > 0
    found = re.search(r"^SQLite, while nothing runs:.*?\n\n(.*?)\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = found[1].replace("/backups/2026-11-26.db", str(backup))
    shell = f'set -e\nhpsearch() {{ {sys.executable} -m hpsearch "$@"; }}\n{lines}'
    subprocess.run(["bash", "-c", shell], cwd=folder, env=environment(folder), check=True, capture_output=True)
    assert rows("sqlite:///" + str(folder / "storage" / "hpsearch.db")) == kept
    assert '"study": "tiny"' in hpsearch(folder, "list", "--json").stdout
