"""storage/postgres: a backup is taken while workers run, and another server goes on from it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from hpsearch.data.load import load
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.spec import parse
from hpsearch.storage import fsck, ledger
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, create_study, load_study, progress
from hpsearch.train.program import Program, place
from tests.cli.running import hpsearch, start
from tests.postgres import PostgresServer, _binary, running_server

SCRIPTS = Path(__file__).parent.parent.parent / "storage" / "postgres"
BIN = Path(_binary("pg_dump")).parent
TOOLS = ("pg_dump", "pg_restore", "psql", "createdb")

pytestmark = pytest.mark.skipif(
    not all((BIN / tool).exists() for tool in TOOLS),
    reason=f"{BIN} lacks pg_dump, pg_restore or psql: install PostgreSQL's client there, or unset HPSEARCH_TEST_PG_BIN",
)

NUM_TRIALS, EPOCHS = 4, 100  # a trial takes seconds, many times what lies between the checkpoints and the database
STUDY = f"""
name = "long"
[model]
name = "3lp"
[data]
name = "digits"
image_size = 8
[training]
epochs = {EPOCHS}
[space]
hidden_width = {{ low = 16, high = 64 }}
learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
[sampler]
name = "random"
[pruner]
name = "none"
[budget]
trials = {NUM_TRIALS}
"""
PASSWORD = "s3:cr\\et"  # libpq's file of passwords has a meaning for both marks


@pytest.fixture
def other() -> Iterator[PostgresServer]:
    """A second server, on which nothing was ever stored."""
    with running_server() as server:
        yield server


def script(name: str, url: str, home: Path, *arguments: Path, code: int = 0, **variables: str) -> str:
    """Run a script for the database of a URL; what it says, on either stream."""
    port, database = url.rpartition(":")[2].split("/")
    place = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "hpsearch", "PGDATABASE": database}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HPSEARCH_", "PG"))}
    done = subprocess.run(
        [str(SCRIPTS / name), *map(str, arguments)],
        env={**kept, **place, "PATH": f"{BIN}:{os.environ['PATH']}", "HPSEARCH_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def study_of(database: Database) -> LoadedStudy:
    return load_study(database, "long")


def test_another_server_goes_on_from_a_backup(postgres: PostgresServer, other: PostgresServer, tmp_path: Path) -> None:
    url, home, backups = postgres.new_database(), tmp_path / "home", tmp_path / "backups"
    backups.mkdir()
    settings = {"HPSEARCH_CHECKPOINT_SECONDS": "0", "HPSEARCH_LEASE_SECONDS": "2", "HPSEARCH_DEVICE": "cpu"}
    with create(url) as database:
        create_study(database, parse(STUDY, "long.toml"), "long")
        places = {"HPSEARCH_STORAGE": url, "HPSEARCH_HOME": str(home)}
        workers = start(tmp_path, "worker", "long", "--workers", "2", **settings, **places)
        try:
            wait_for_some(database)
            said = script("backup.sh", url, home, backups)
        finally:
            os.killpg(workers.pid, signal.SIGKILL)
            workers.communicate()
        database.close()
    (backup,) = backups.iterdir()
    assert f"{backup}: " in said
    assert "rows, verified" in said
    assert {path.name for path in backup.iterdir()} == {"checkpoints.tar", "database.dump", "rows", "SHA256SUMS"} | (
        {"files.tar"} if (home / "pictures").exists() else set()
    )

    there, new_home = other.new_database(), tmp_path / "new-home"
    assert "restored" in script("restore.sh", there, new_home, backup)
    with connect(there) as database:
        study = study_of(database)
        then = progress(database, study)
        assert then.running
        assert 0 < then.finished < NUM_TRIALS
        # A trial may have ended between the archive of checkpoints and the dump.
        mended = fsck.run(database, study, str(new_home / "checkpoints"), mend=True)
        assert {finding.kind for finding in mended.repaired} <= {"checkpoint"}
        assert mended.left == ()
    settings |= {"HPSEARCH_STORAGE": there, "HPSEARCH_HOME": str(new_home)}
    output = hpsearch(tmp_path, "worker", "long", "--workers", "2", **settings).stdout
    assert "goes on" in output
    with connect(there) as database:
        check(database, tmp_path)
        assert fsck.run(database, study_of(database), str(new_home / "checkpoints"), mend=False) == fsck.Report(
            NUM_TRIALS, (), ()
        )


def wait_for_some(database: Database) -> None:
    """Until a trial has ended, and two others have been trained for some epochs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        trials = study_of(database).optuna_study.get_trials(deepcopy=False)
        begun = [
            one for one in trials if one.state == TrialState.RUNNING and 5 < len(one.intermediate_values) < EPOCHS * 0.6
        ]
        if len(begun) == 2 and any(one.state == TrialState.COMPLETE for one in trials):
            return
        time.sleep(0.05)
    raise AssertionError("the workers did not come that far")


def check(database: Database, home: Path) -> None:
    """The exact budget, curves without gaps, and every value that of an undisturbed run."""
    trials = study_of(database).optuna_study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    data = place(load("digits", data_dir=None, cache_dir=home / "datasets", image_size=8), "cpu")
    for trial in trials:
        recipe = Recipe(**trial.user_attrs[RECIPE_KEY])
        program = Program(recipe, build_model(recipe, data.input_shape, data.num_classes), data)
        undisturbed = {epoch: program.run_epoch().validation_accuracy for epoch in range(1, EPOCHS + 1)}
        assert trial.intermediate_values == undisturbed, trial.number
        assert [row["epoch"] for row in ledger.epochs(database, trial._trial_id)] == list(range(1, EPOCHS + 1))
    torch.set_num_threads(threads)
