"""Runs the command `hpsearch` inside this process, where a process for each call would take most of the time."""

import contextlib
import io
import os
import subprocess
import tempfile
from pathlib import Path

from hpsearch.cli.main import main


def hpsearch(folder: Path, *arguments: str, code: int = 0, **variables: str) -> "subprocess.CompletedProcess[str]":
    """As `tests.cli.running.hpsearch`."""
    out = io.StringIO()
    with tempfile.TemporaryFile("w+") as err:  # a file, for workers write the last words of crashes there
        with _in(folder, variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(list(arguments))
            except SystemExit as left:
                found = left.code
        err.seek(0)
        said = err.read()
    assert found == code, f"exit code {found}\n{out.getvalue()}\n{said}"
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), said)


def one_line(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a command that must refuse; its only line."""
    done = hpsearch(folder, *arguments, code=2, **variables)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@contextlib.contextmanager
def _in(folder: Path, variables: dict[str, str]):  # type: ignore[no-untyped-def]
    """The folder and the environment of a person who stands there."""
    before = dict(os.environ)
    for key in [key for key in before if key.startswith("HPSEARCH_")]:
        del os.environ[key]
    os.environ.update({"COLUMNS": "160"} | variables)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
