"""The commands from end to end, as processes in an empty folder."""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import update

from hpsearch.storage.open import connect, create
from hpsearch.storage.studies import SPEC_KEY, load_study
from hpsearch.storage.tables import STUDY_USER_ATTRIBUTES
from tests.cli import inside
from tests.cli.running import command, environment, hpsearch, start
from tests.postgres import PostgresServer, free_port
from tests.studies import TINY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with one study file."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def states(folder: Path, study: str = "tiny", **variables: str) -> list[str]:
    """The states of the study's trials."""
    return [trial["state"] for trial in json.loads(hpsearch(folder, "trials", study, "--json", **variables).stdout)]


def wait_for(folder: Path, what: str, process: "subprocess.Popen[str]") -> None:
    """Wait until the process has printed a line that holds `what`."""
    assert process.stdout is not None
    for line in process.stdout:
        if what in line:
            return
    raise AssertionError(f"{what!r} never came: {process.stderr.read() if process.stderr else ''}")


def test_from_the_study_to_the_best_configuration(folder: Path) -> None:
    created = hpsearch(folder, "create-study", "tiny.toml").stdout
    assert "study tiny: 6 trials of up to 3 epochs" in created
    assert "next: hpsearch worker tiny" in created
    assert (folder / "storage" / "hpsearch.db").is_file()
    output = hpsearch(folder, "worker", "tiny", "--workers", "2").stdout
    assert "6 of 6 trials ended" in output
    assert "next: hpsearch best tiny" in output
    assert "importances" in output
    for number in range(6):
        assert f"trial {number} " in output
    assert "\x1b" not in output  # no terminal, no colours
    status = json.loads(hpsearch(folder, "status", "tiny", "--json").stdout)
    assert (status["state"], status["budget"], status["running"]) == ("finished", 6, 0)
    best = json.loads(hpsearch(folder, "best", "tiny", "--json").stdout)
    assert best["best"][0]["value"] == status["best"]
    assert best["best"][0]["number"] == status["best_trial"]
    assert set(best["best"][0]["searched"]) <= {"learning_rate", "optimizer", "momentum"}
    assert best["importances"]["evaluator"] == "PED-ANOVA"
    listed = json.loads(hpsearch(folder, "list", "--json").stdout)
    assert [study["study"] for study in listed["studies"]] == ["tiny"]
    assert "lenet" in listed["available"]
    for text in (("list",), ("status", "tiny"), ("trials", "tiny"), ("best", "tiny")):
        assert hpsearch(folder, *text).stdout
    again = hpsearch(folder, "worker", "tiny").stdout
    assert "all of its 6 trials have been started" in again
    assert states(folder).count("RUNNING") == 0


def test_on_postgresql_by_environment(folder: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database().replace("hpsearch@", "hpsearch:s3cret@")  # trust: any password will do
    created = hpsearch(folder, "create-study", "tiny.toml", HPSEARCH_STORAGE=url)
    worked = hpsearch(folder, "worker", "--workers", "2", HPSEARCH_STORAGE=url)
    listed = hpsearch(folder, "list", HPSEARCH_STORAGE=url)
    assert len(states(folder, HPSEARCH_STORAGE=url)) == 6
    assert "s3cret" not in created.stdout + worked.stdout + listed.stdout + worked.stderr
    assert not (folder / "storage" / "hpsearch.db").exists()


def test_set_and_study_name(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--study-name", "short", "--set", "budget.trials=2")
    hpsearch(folder, "create-study", "tiny.toml", "--study-name", "short", "--if-missing")
    assert json.loads(hpsearch(folder, "status", "short", "--json").stdout)["budget"] == 2
    hpsearch(folder, "worker", "--max-trials", "1", "--max-idle", "0.1")
    assert len(states(folder, "short")) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupting_gives_trials_back(folder: Path, number: signal.Signals, workers: str) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--set", "training.epochs=10000", "--set", "pruner.name=none")
    process = start(folder, "worker", "tiny", "--workers", workers)
    wait_for(folder, "study tiny", process)
    deadline = time.monotonic() + 60
    while states(folder).count("RUNNING") < int(workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches every process of the terminal's group
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert "goes back to the queue" in output
    assert "next: hpsearch worker tiny" in output
    assert set(states(folder)) == {"WAITING"}


def test_workers_of_a_killed_parent_give_their_trials_back(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--set", "training.epochs=10000", "--set", "pruner.name=none")
    process = start(folder, "worker", "tiny", "--workers", "2")
    wait_for(folder, "study tiny", process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while "RUNNING" in states(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert set(states(folder)) == {"WAITING"}


def test_output_to_a_closed_pipe(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml")
    process = start(folder, "trials", "tiny", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait()
    process.stderr.close()


def test_the_dashboard_is_for_reading_and_for_this_machine(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml")
    port = free_port()
    request = partial(answer_of, port)
    process = start(folder, "dashboard", "--port", str(port))
    try:
        wait_for(folder, f"http://127.0.0.1:{port}/", process)
        assert request("GET", "/api/studies")[0] == 200
        assert b"tiny" in request("GET", "/api/studies")[1]
        assert request("GET", "/dashboard")[0] == 200
        for method, path in (("DELETE", "/api/studies/1"), ("POST", "/api/studies"), ("PUT", "/api/studies/1/note")):
            assert request(method, path)[0] == 405
        assert request("GET", "/api/studies", host="evil.example")[0] == 403
        hpsearch(folder, "dashboard", "--port", str(port), code=2)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert json.loads(hpsearch(folder, "list", "--json").stdout)["studies"][0]["study"] == "tiny"


def answer_of(port: int, method: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    place = f"127.0.0.1:{port}"
    asked = urllib.request.Request(f"http://{place}{path}", method=method, headers={"Host": host or place})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


@pytest.mark.parametrize(("where", "code", "said"), [("> /dev/full", 1, "No space left on device"), (">&-", 0, "")])
def test_output_that_cannot_be_written(where: str, code: int, said: str, folder: Path) -> None:
    line = f"{shlex.join(command('list'))} {where}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == code
    assert [said in text for text in done.stderr.splitlines()] == [True] * code


def test_a_narrow_terminal_cuts_nothing_off(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--set", "budget.trials=1000000")
    hpsearch(folder, "worker", "tiny", "--device", "cpu", "--lanes", "1", "--max-trials", "2")
    listed = hpsearch(folder, "list", COLUMNS="40").stdout
    assert "2/1000000" in listed
    shown = hpsearch(folder, "trials", "tiny", COLUMNS="40").stdout
    assert all(word in "".join(shown.split()) for word in ("COMPLETE", "momen", "optimi", "0.01"))
    wide = hpsearch(folder, "best", "tiny", COLUMNS="80").stdout
    assert max(map(len, wide.splitlines()[:-1])) <= 80


def test_a_study_that_cannot_be_read_hides_no_other(folder: Path) -> None:
    for name in ("older", "list", "cut", "tiny"):
        inside.hpsearch(folder, "create-study", "tiny.toml", "--study-name", name)
    with connect(f"sqlite:///{folder}/storage/hpsearch.db") as database:
        older = load_study(database, "older").optuna_study
        older.set_user_attr(SPEC_KEY, older.user_attrs[SPEC_KEY].replace('"trials": 6', '"trials": 0'))
        load_study(database, "list").optuna_study.set_user_attr(SPEC_KEY, "[]")
        cut = load_study(database, "cut").study_id
        with database.engine.begin() as connection:
            table = STUDY_USER_ATTRIBUTES
            of_cut = (table.c.study_id == cut) & (table.c.key == SPEC_KEY)
            connection.execute(update(table).where(of_cut).values(value_json='"{'))
    listed = json.loads(inside.hpsearch(folder, "list", "--json").stdout)["studies"]
    found = {"older": "unreadable", "list": "unreadable", "cut": "unreadable", "tiny": "waiting for workers"}
    assert {one["study"]: one["state"] for one in listed} == found
    for name, why in (("older", "budget.trials = 0"), ("list", "no JSON object"), ("cut", "attributes are damaged")):
        assert why in inside.one_line(folder, "status", name)


def test_a_worker_passes_over_studies_that_are_not_hpsearchs(folder: Path) -> None:
    with create(f"sqlite:///{folder}/storage/hpsearch.db") as database:
        optuna.create_study(study_name="foreign", storage=database.storage)
    hpsearch(folder, "create-study", "tiny.toml", "--set", "budget.trials=1")
    assert "trial 0 complete" in hpsearch(folder, "worker", "--device", "cpu", "--max-idle", "0").stdout
    assert "not created by hpsearch" in inside.one_line(folder, "worker", "foreign", "--device", "cpu")


def test_a_recorded_study_that_is_another_than_its_file_is_no_silent_success(folder: Path) -> None:
    again = ("create-study", "tiny.toml", "--if-missing")
    inside.hpsearch(folder, *again)
    assert "warning" not in inside.hpsearch(folder, *again).stderr
    changed = inside.hpsearch(folder, *again, "--set", "training.epochs=5")
    assert "differs from tiny.toml in training and stays" in changed.stderr
    inside.hpsearch(folder, "extend", "tiny", "--trials", "4")
    assert "warning" not in inside.hpsearch(folder, *again).stderr
    assert "warning" not in inside.hpsearch(folder, *again, "--trials", "10").stderr
    assert "in budget and stays" in inside.hpsearch(folder, *again, "--trials", "11").stderr


NUM_PROCESSES, NUM_ROUNDS = 6, 4


def create_together(folder: Path, ready: Any) -> None:
    """A process that makes the same studies as others, each at the same moment."""
    for number in range(NUM_ROUNDS):
        ready.wait()
        inside.hpsearch(folder, "create-study", "tiny.toml", "--if-missing", "--study-name", f"s{number}")


def test_of_several_that_create_a_study_if_it_is_missing_none_fails(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(NUM_PROCESSES, timeout=60)
    processes = [context.Process(target=create_together, args=(folder, ready)) for _ in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    listed = json.loads(inside.hpsearch(folder, "list", "--json").stdout)["studies"]
    assert [study["study"] for study in listed] == [f"s{number}" for number in range(NUM_ROUNDS)]
