"""`hpsearch status --watch`, in a terminal and elsewhere."""

import codecs
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hpsearch.cli.watch import _over
from hpsearch.storage.studies import Progress
from tests.cli.running import STARTED, command, environment, hpsearch, start
from tests.studies import TINY


def test_lines_until_the_study_has_finished(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    watching = start(tmp_path, "status", "tiny", "--watch")
    hpsearch(tmp_path, "worker", "tiny")
    output, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    lines = output.splitlines()
    assert lines[0].startswith("waiting for workers; 0 of 6 trials ended")
    assert lines[-1].startswith("finished; 6 of 6 trials ended")
    assert "\x1b" not in output
    assert "--json" in hpsearch(tmp_path, "status", "tiny", "--watch", "--json", code=2).stderr


def test_a_stopped_study_is_not_watched_for_ever(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    hpsearch(tmp_path, "stop", "tiny")
    watching = start(tmp_path, "status", "tiny", "--watch")
    try:
        output, errors = watching.communicate(timeout=30)
    finally:
        watching.kill()
    assert watching.returncode == 0, errors
    assert output.startswith("stopped; 0 of 6 trials ended")


@pytest.mark.parametrize(
    ("known", "over"),
    [
        ({"state": "stopped", "running": 1}, False),  # it gives its trial back after this epoch
        ({"state": "stopped", "running": 1, "abandoned": 1}, True),
        ({"state": "paused"}, False),
        ({"startable": 1}, False),
        ({"running": 1, "abandoned": 1}, False),  # the next worker takes it
        ({}, True),
    ],
)
def test_what_is_over(known: dict[str, object], over: bool) -> None:
    names = ("complete", "pruned", "failed", "running", "waiting", "abandoned", "max_trials", "startable")
    given = dict.fromkeys(names, 0) | {"state": "running", "reason": "", "best_number": None, "best_value": None}
    assert _over(Progress(**(given | known))) is over  # type: ignore[arg-type]


def test_a_live_view_in_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml", "--set", "training.epochs=1000000", "--set", "pruner.name=none")
    worker = start(tmp_path, "worker", "tiny")
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        command("status", "tiny", "--watch"),
        cwd=tmp_path,
        env=environment(tmp_path) | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    STARTED.append(watching)
    os.close(theirs)
    decoder = codecs.getincrementaldecoder("utf-8")()  # what is read may end within a character
    seen, deadline = "", time.monotonic() + 60
    while any(text not in seen for text in ("training", "images/s", "as asked")) and time.monotonic() < deadline:
        seen += decoder.decode(os.read(ours, 10_000))
    watching.send_signal(signal.SIGINT)
    code = watching.wait(30)
    os.close(ours)
    worker.send_signal(signal.SIGINT)
    worker.communicate(timeout=60)
    assert "training" in seen
    assert "as asked" in seen
    assert "Traceback" not in seen
    assert code == 75
