"""Runs the command `hpsearch` as a person would: as a process, in a folder and environment of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

STARTED: list["subprocess.Popen[Any]"] = []  # what `kill_since` ends if the test that started it does not


def environment(folder: Path) -> dict[str, str]:
    """The environment without hpsearch's own variables and with one thread per process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"}


def command(*arguments: str) -> list[str]:
    """The command line that runs `hpsearch` from this environment."""
    return [sys.executable, "-m", "hpsearch", *arguments]


def hpsearch(folder: Path, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run to the end in `folder` and check the exit code."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder) | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def start(folder: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Start in `folder`, in a process group of its own, as a terminal does."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    STARTED.append(process)
    return process


def kill_since(number: int) -> None:
    """Kill those of STARTED from `number` on that run still, each with its process group."""
    for process in STARTED[number:]:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    del STARTED[number:]
