"""Workers in processes of their own: what they print that is no event neither hides one nor keeps anybody waiting."""

import os
import signal
import threading
from pathlib import Path

import pytest

from hpsearch.events import WorkerLeft, WorkerWarned, to_json
from hpsearch.processes import WorkerExited, Workers
from tests.cli.running import environment, hpsearch
from tests.studies import TINY

ENTRY_POINTS = "[hpsearch.models]\ntalkative = talkative:Net\n"
# It never ends a line, in the manner of a progress bar, and writes past Python as a library in C does.
TALKATIVE = """
import os
from hpsearch.models.perceptron import TwoLayerPerceptron

class Net(TwoLayerPerceptron):
    def forward(self, images):
        print("I am a network", end="")
        os.write(1, b"and this is C")
        return super().forward(images)
"""


def events(workers: Workers) -> list[object]:
    """All events, within a minute."""
    found: list[object] = []
    reading = threading.Thread(target=lambda: found.extend(event for _, event in workers.events()), daemon=True)
    reading.start()
    reading.join(60.0)
    assert not reading.is_alive(), "the events do not end"
    return found


def test_lines_that_are_no_events_are_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert events(Workers([["--help"]], environment(tmp_path))) == [WorkerExited(0)]
    assert "Start one on every machine and GPU" in capsys.readouterr().err


def test_events_go_on_after_lines_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left = WorkerLeft("done")
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nprintf '5\\n[]\\n\\377\\n%s\\nlast' '{to_json(left)}'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("hpsearch.processes.sys.executable", str(program))
    assert events(Workers([[]], dict(os.environ))) == [left, WorkerExited(3)]
    assert capfd.readouterr().err == "5\n[]\n\\xff\nlast"


@pytest.mark.parametrize(("limits", "starts"), [("", 4), ("--max-trials 5", 1)])
def test_a_worker_that_is_killed_starts_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: str, starts: int
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr("hpsearch.processes.sys.executable", str(program))
    *warned, last = events(Workers([limits.split()], dict(os.environ)))
    assert warned == [WorkerWarned("its process was killed (SIGKILL), and starts again")] * (starts - 1)
    assert last == WorkerExited(-9)
    assert (tmp_path / "starts").read_text() == "x\n" * starts


@pytest.mark.parametrize("how", ["terminate", "leave"])
def test_a_worker_that_is_killed_while_all_leave_does_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\ntrap 'kill -9 $$' TERM\necho 5\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setattr("hpsearch.processes.sys.executable", str(program))
    ready = threading.Event()
    monkeypatch.setattr("hpsearch.processes.Workers._take", lambda *_: ready.set())
    workers = Workers([[]], dict(os.environ))
    assert ready.wait(60.0)
    if how == "terminate":
        workers.terminate()
    else:  # Ctrl-C, which every process of the terminal gets
        workers.leave()
        workers._processes[0].send_signal(signal.SIGTERM)
    assert events(workers) == [WorkerExited(-9)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_worker_is_told_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_line: str) -> None:
        raise RuntimeError("made up")

    monkeypatch.setattr("hpsearch.processes.from_json", fail)
    others = threading.enumerate()
    workers = Workers([["--help"]], environment(tmp_path))
    readers = [thread for thread in threading.enumerate() if thread not in others]
    assert isinstance(events(workers)[-1], WorkerExited)
    for reader in readers:
        reader.join()  # or its exception would be told in the next test


def test_a_network_that_prints_hides_no_event(tmp_path: Path) -> None:
    info = tmp_path / "talkative-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: talkative\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    (tmp_path / "tiny.toml").write_text(TINY.replace('"2lp"', '"talkative"').replace('"asha"', '"none"'))
    hpsearch(tmp_path, "create-study", "tiny.toml", PYTHONPATH=str(tmp_path))
    arguments = ["worker", "--device", "cpu", "--workers", "2", "tiny"]
    done = hpsearch(tmp_path, *arguments, PYTHONPATH=str(tmp_path))
    assert sum(" complete after epoch 3 of 3" in line for line in done.stdout.splitlines()) == 6
    assert "I am a network" in done.stderr
    assert "this is C" in done.stderr
    assert "network" not in done.stdout
