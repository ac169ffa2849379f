"""Checkpoints: one contract over a folder and S3; and workers whose place for them is full, damaged or away."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from optuna.trial import TrialState
from sqlalchemy import update

from hpsearch.artifacts import Checkpoints, FolderCheckpoints, study_prefix, trial_key, trial_number
from hpsearch.errors import UsageError
from hpsearch.events import EpochDone, TrialEnded, TrialResumed, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.checkpoints import HEADER_BYTES, S3Checkpoints, open_checkpoints
from hpsearch.storage.open import Database, create
from hpsearch.storage.s3 import Bucket
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.worker import run
from tests.disks import small_disk
from tests.s3 import BUCKET, S3Server, running_s3
from tests.studies import TINY

PREFIX = study_prefix("tiny", "2026-01-01")
KEY = trial_key(PREFIX, 3, {"learning_rate": 0.1})
LAST = 1000


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    with running_s3(monkeypatch) as server:
        yield server


class Place:
    """A place for checkpoints, and how a test damages what is in it."""

    def __init__(self, checkpoints: Checkpoints, server: S3Server | None) -> None:
        self.checkpoints, self._server = checkpoints, server

    def stored(self) -> list[str]:
        """Names of everything stored, in any order."""
        if self._server is not None:
            return self._server.names()
        assert isinstance(self.checkpoints, FolderCheckpoints)
        return [str(path) for path in self.checkpoints.folder.rglob("*") if path.is_file()]

    def change(self, epoch: int, cut: int = 0) -> None:
        """Alter the last byte of the checkpoint of that epoch, or cut some bytes off."""
        if self._server is not None:
            names = {self._header(name): name for name in self._server.names()}
            self._server.change(next(name for header, name in names.items() if f'"epoch": {epoch},' in header), cut=cut)
            return
        path = next(Path(name) for name in self.stored() if Path(name).name.startswith(f"{epoch:06d}-"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content[:-cut] if cut else content)

    def _header(self, name: str) -> str:
        assert self._server is not None
        body = self._server.client.get_object(Bucket=BUCKET, Key=name)["Body"]
        return str(body.read()[:HEADER_BYTES].decode())


@pytest.fixture(params=["folder", "s3", "s3 without prefix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place: every test that takes this runs over a folder and over S3."""
    if request.param == "folder":
        return Place(open_checkpoints(str(tmp_path / "checkpoints")), None)
    server: S3Server = request.getfixturevalue("s3")
    url = f"s3://{BUCKET}/some/where" if request.param == "s3" else f"s3://{BUCKET}"
    return Place(open_checkpoints(url), server)


def content_of(epoch: int) -> bytes:
    """Something of the size of a small checkpoint."""
    return f"epoch {epoch}".encode() * 20_000


def save(place: Place, *epochs: int, key: str = KEY) -> None:
    """Save a checkpoint for each epoch."""
    for epoch in epochs:
        place.checkpoints.save(key, epoch, content_of(epoch))


def load(place: Place, last_epoch: int = LAST, key: str = KEY) -> list[int]:
    """The epochs that can be loaded, their contents checked."""
    found = list(place.checkpoints.load(key, last_epoch))
    assert all(content == content_of(epoch) for epoch, content in found)
    return [epoch for epoch, _ in found]


def test_the_last_two_are_kept_the_newest_comes_first(place: Place) -> None:
    assert load(place) == []
    save(place, 1)
    assert load(place) == [1]
    save(place, 2, 3, 5)
    assert load(place) == [5, 3]
    assert len(place.stored()) == 2


def test_large_contents_come_back_whole(place: Place) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB: S3 takes it in parts
    place.checkpoints.save(KEY, 1, content)
    assert list(place.checkpoints.load(KEY, 1)) == [(1, content)]


@pytest.mark.parametrize("cut", [0, 1, 300_000], ids=["altered", "cut off", "nearly empty"])
def test_a_damaged_one_falls_back_to_the_one_before(place: Place, cut: int) -> None:
    save(place, 1, 2)
    place.change(2, min(cut, len(content_of(2)) - 1))
    assert len(place.checkpoints.damaged(KEY)) == 1
    assert load(place) == [1]
    assert place.checkpoints.damaged(KEY) == []  # it is gone
    save(place, 2)
    assert load(place) == [2, 1]


def test_both_damaged(place: Place) -> None:
    save(place, 1, 2)
    place.change(1)
    place.change(2)
    assert load(place) == []
    assert place.stored() == []


def test_ahead_of_the_record_is_passed_over_and_does_not_hide_what_comes_later(place: Place) -> None:
    save(place, 7, 8)
    assert load(place, last_epoch=5) == []
    save(place, 1)
    assert load(place) == [1]
    save(place, 2)
    assert load(place) == [2, 1]


def test_those_of_a_worker_that_lost_the_trial_do_not_push_out_the_new_owners(place: Place) -> None:
    save(place, 5, 11, 6, 7)
    assert load(place, last_epoch=8)[0] == 7


def test_a_worker_that_lost_the_trial_long_ago_leaves_the_new_owners_alone(place: Place) -> None:
    save(place, 48, 49, 5)
    assert load(place)[:2] == [49, 48]


def test_an_epoch_that_is_saved_again_replaces_itself(place: Place) -> None:
    save(place, 1, 2, 2)
    assert load(place) == [2, 1]


def test_trials_and_studies_are_told_apart(place: Place) -> None:
    other_trial = trial_key(PREFIX, 4, {"learning_rate": 0.1})
    other_recipe = trial_key(PREFIX, 3, {"learning_rate": 0.2})
    other_study = trial_key(study_prefix("tiny", "2026-01-02"), 3, {"learning_rate": 0.1})
    keys = (KEY, other_trial, other_recipe, other_study)
    for epoch, key in enumerate(keys, start=1):
        save(place, epoch, key=key)
    assert [load(place, key=key) for key in keys] == [[1], [2], [3], [4]]
    assert place.checkpoints.keys(PREFIX) == sorted([KEY, other_trial, other_recipe])
    assert [trial_number(key) for key in keys] == [3, 4, 3, 3]
    place.checkpoints.forget(KEY)
    place.checkpoints.forget(KEY)  # nothing is there: nothing happens
    assert [load(place, key=key) for key in keys] == [[], [2], [3], [4]]
    assert place.checkpoints.keys(PREFIX) == sorted([other_trial, other_recipe])


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    folder = FolderCheckpoints(tmp_path)
    folder.save(KEY, 1, b"1")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / KEY / "notes.txt").write_text("mine")
    assert folder.keys(PREFIX) == [KEY]
    assert folder.damaged(KEY) == []
    assert [epoch for epoch, _ in folder.load(KEY, LAST)] == [1]
    assert (tmp_path / KEY / "notes.txt").exists()


def test_a_writer_that_is_killed_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    folder = FolderCheckpoints(tmp_path)
    folder.save(KEY, 1, b"1")
    (tmp_path / KEY / ".x.part").write_bytes(b"half")
    assert [epoch for epoch, _ in folder.load(KEY, LAST)] == [1]
    folder.forget(KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a text")
    folder = open_checkpoints(str(tmp_path / "occupied"))
    with pytest.raises(OSError, match="occupied"):
        folder.save(KEY, 1, b"1")
    assert list(folder.load(KEY, LAST)) == []
    folder.forget(KEY)


def test_files_are_as_open_as_the_user_makes_files(tmp_path: Path) -> None:
    """The next worker of a trial may be another user's."""
    folder = FolderCheckpoints(tmp_path)
    folder.save(KEY, 1, b"one")
    (path,) = (tmp_path / KEY).iterdir()
    (tmp_path / "plain").write_bytes(b"one")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_that_may_not_be_read_are_no_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that begins a trial again says why."""
    FolderCheckpoints(tmp_path).save(KEY, 1, b"one")
    locked = Mock(side_effect=PermissionError(13, "Permission denied"))  # what the root user never meets
    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(PermissionError, match="Permission denied"):
        list(FolderCheckpoints(tmp_path).load(KEY, LAST))


def test_s3_that_is_away_says_so_in_one_line_and_in_time(s3: S3Server) -> None:
    checkpoints = open_checkpoints(f"s3://{BUCKET}/x")
    checkpoints.save(KEY, 1, b"1")
    s3.stop()
    started = time.monotonic()
    for call in (
        lambda: checkpoints.save(KEY, 2, b"2"),
        lambda: list(checkpoints.load(KEY, LAST)),
        lambda: checkpoints.keys(PREFIX),
        lambda: checkpoints.damaged(KEY),
    ):
        with pytest.raises(OSError, match=f"s3://{BUCKET}/x/ cannot be used") as caught:
            call()
        assert "\n" not in str(caught.value)
    checkpoints.forget(KEY)
    assert time.monotonic() - started < 60
    s3.start()
    assert list(checkpoints.load(KEY, LAST)) == [(1, b"1")]


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    with pytest.raises(OSError, match="NoSuchBucket"):
        open_checkpoints("s3://elsewhere").save(KEY, 1, b"1")


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "gs://bucket/prefix", "http://host/x"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"must be a folder or s3://BUCKET/PREFIX"):
        open_checkpoints(url)


def test_s3_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match=r"pip install '.\[s3\]'"):
        open_checkpoints("s3://bucket")


def test_settings_say_where(tmp_path: Path) -> None:
    home = Settings.from_environment({"HPSEARCH_HOME": str(tmp_path)})
    assert open_checkpoints(home.checkpoints) == FolderCheckpoints(tmp_path / "checkpoints")
    given = Settings.from_environment({"HPSEARCH_ARTIFACTS": "elsewhere"})
    assert open_checkpoints(given.checkpoints) == FolderCheckpoints(Path("elsewhere"))


# Workers


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """An open database with the study `tiny`."""
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(TINY.replace('"asha"', '"none"'), "tiny.toml"), "tiny")
        yield database


def settings(tmp_path: Path, artifacts: str = "") -> Settings:
    """Settings whose folders are temporary, with a checkpoint after every epoch."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    return Settings(url, tmp_path, None, "cpu", checkpoint_seconds=0.0, artifacts=artifacts)


def curves(database: Database) -> list[dict[int, float]]:
    """Every trial's values."""
    return [trial.intermediate_values for trial in load_study(database, "tiny").optuna_study.trials]


def break_off(database: Database, given: Settings) -> None:
    """A worker that vanishes after the second epoch of its first trial."""
    events: Any = run(database, "tiny", given, Interruption())
    while not (isinstance(event := next(events), EpochDone) and event.epoch == 2):
        pass
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0, token=7))  # its owner can write no more
    events.close()


def test_a_trial_goes_on_from_s3_with_the_values_of_an_undisturbed_run(
    sqlite: Database, tmp_path: Path, s3: S3Server
) -> None:
    with create(f"sqlite:///{tmp_path / 'undisturbed.db'}") as database:
        create_study(database, load_study(sqlite, "tiny").spec, "tiny")
        list(run(database, "tiny", settings(tmp_path), Interruption(), 1))
        undisturbed = curves(database)[0]
    given = settings(tmp_path, f"s3://{BUCKET}/runs")
    break_off(sqlite, given)
    assert len(s3.names()) == 2
    assert all(name.startswith("runs/") for name in s3.names())
    events = list(run(sqlite, "tiny", given, Interruption(), 1))
    assert any(isinstance(event, TrialResumed) for event in events)
    assert curves(sqlite)[0] == undisturbed
    assert all(name.startswith("runs/pictures/") for name in s3.names())  # its checkpoints are gone


def test_s3_away_costs_the_checkpoints_and_not_the_trials(sqlite: Database, tmp_path: Path, s3: S3Server) -> None:
    given = settings(tmp_path, f"s3://{BUCKET}/runs")
    break_off(sqlite, given)
    s3.stop()
    try:
        events = list(run(sqlite, "tiny", given, Interruption(), 2))
    finally:
        s3.start()
    warnings = [event.message for event in events if isinstance(event, WorkerWarned)]
    assert any("trial 0 begins again, without its checkpoints" in text for text in warnings)
    assert any("trial 1 goes on without a checkpoint" in text for text in warnings)
    assert [event.state for event in events if isinstance(event, TrialEnded)] == ["COMPLETE"] * 2
    assert [list(curve) for curve in curves(sqlite)] == [[1, 2, 3]] * 2


def test_a_full_disk_costs_the_checkpoints_and_not_the_trials(sqlite: Database, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        given = settings(tmp_path, str(disk.folder / "checkpoints"))
        break_off(sqlite, given)
        key = next(iter((disk.folder / "checkpoints").iterdir())).name
        before = list(open_checkpoints(given.checkpoints).load(key, LAST))
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            open_checkpoints(given.checkpoints).save(key, 9, b"\0" * 100_000)
        assert list(open_checkpoints(given.checkpoints).load(key, LAST)) == before != []
        events = list(run(sqlite, "tiny", given, Interruption(), 2))
        warnings = [event.message for event in events if isinstance(event, WorkerWarned)]
        assert any("goes on without a checkpoint" in text and "No space left" in text for text in warnings)
        assert [event.state for event in events if isinstance(event, TrialEnded)] == ["COMPLETE"] * 2
        disk.make_room()
        events = list(run(sqlite, "tiny", given, Interruption(), 1))
        assert not [event for event in events if isinstance(event, WorkerWarned)]


def test_of_a_trial_that_fails_no_checkpoint_is_kept(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpsearch.train.program import Program

    original = Program.train_block

    def third_fails(program: Program, *block: Any) -> None:
        if program.epoch == 2:
            raise ValueError("broken")
        original(program, *block)

    monkeypatch.setattr(Program, "train_block", third_fails)
    list(run(sqlite, "tiny", settings(tmp_path), Interruption(), 1))
    assert load_study(sqlite, "tiny").optuna_study.trials[0].state == TrialState.FAIL
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_both_places_are_checkpoints(tmp_path: Path, s3: S3Server) -> None:
    places: list[Checkpoints] = [FolderCheckpoints(tmp_path), S3Checkpoints(Bucket(f"s3://{BUCKET}"))]
    assert [place.place for place in places] == [str(tmp_path), f"s3://{BUCKET}/"]
