"""Last words: a worker that dies of a segmentation fault leaves its stack for the record of the trial."""

import os
import subprocess
import sys
import time
from pathlib import Path

from optuna.trial import TrialState

from hpsearch import crashes
from hpsearch.spec import parse
from hpsearch.storage import ledger
from hpsearch.storage.ledger import TRACEBACK_KEY
from hpsearch.storage.open import create
from hpsearch.storage.studies import create_study, load_study
from tests.studies import TINY

DYING = """
import faulthandler, sys
from pathlib import Path
from hpsearch.crashes import kept

def train_with_a_broken_library():
    faulthandler._sigsegv()

with kept(Path(sys.argv[1]), "host:7:ab"):
    train_with_a_broken_library()
"""


def test_a_crash_leaves_its_stack_and_a_good_end_nothing(tmp_path: Path) -> None:
    with crashes.kept(tmp_path, "host:1:cd"):
        assert crashes.last_words(tmp_path, "host:1:cd") == ""
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -11
    words = crashes.last_words(tmp_path, "host:7:ab")
    assert "Segmentation fault" in words
    assert "train_with_a_broken_library" in words
    assert crashes.last_words(tmp_path, "another:7:ab") == ""


def test_what_killed_workers_left_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    files = {name: tmp_path / f"host-{name}.txt" for name in ("old", "new", "telling")}
    for path in files.values():
        path.write_text("Segmentation fault" if "telling" in path.name else "")
    for name in ("old", "telling"):
        os.utime(files[name], (0, time.time() - crashes.LEFT_SECONDS - 9))
    with crashes.kept(tmp_path, "me"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["host-new.txt", "host-telling.txt", "me.txt"]


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with crashes.kept(tmp_path / "file" / "crashes", "me"):
        pass


def test_the_third_crash_keeps_the_stack(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, check=False)
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        study = load_study(database, "tiny")
        for owner in ("host:5:ab", "host:6:ab", "host:7:ab"):
            ledger.take(database, study.study_id, 1, owner, 0.0, study.plan)
            time.sleep(0.01)
        taken = ledger.take(
            database, study.study_id, 1, "me", 60.0, study.plan, lambda owner: crashes.last_words(tmp_path, owner)
        )
        first = study.optuna_study.trials[0]
        assert first.state == TrialState.FAIL
        assert "train_with_a_broken_library" in first.user_attrs[TRACEBACK_KEY]
        assert [lease.number for lease in taken.leases] == [1]
