"""What the commands about studies say of those that are damaged, or hold what JSON cannot."""

import json
import math
from pathlib import Path

import optuna
import pytest
from sqlalchemy import delete

from hpsearch.storage.open import connect
from hpsearch.storage.tables import CONTROL
from tests.cli.inside import hpsearch, one_line
from tests.studies import TINY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two studies, `odd` and `tiny`."""
    (tmp_path / "tiny.toml").write_text(TINY)
    for name in ("odd", "tiny"):
        hpsearch(tmp_path, "create-study", "tiny.toml", "--study-name", name)
    return tmp_path


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/storage/hpsearch.db"


def test_a_damaged_study_hides_no_other(folder: Path) -> None:
    with connect(url(folder)) as database, database.engine.begin() as connection:
        connection.execute(delete(CONTROL).where(CONTROL.c.study_id == 1))
    sentence = "study odd: its row of control is missing; `hpsearch fsck odd --repair` puts it back"
    shown = hpsearch(folder, "list").stdout
    assert sentence in shown
    assert "waiting for workers" in shown
    odd, tiny = json.loads(hpsearch(folder, "list", "--json").stdout)["studies"]
    assert (odd["state"], odd["budget"], odd["problem"]) == ("damaged", None, sentence)
    assert (tiny["state"], tiny["budget"]) == ("waiting for workers", 6)
    assert sentence in one_line(folder, "status", "odd")
    hpsearch(folder, "fsck", "odd", "--repair")
    assert "damaged" not in hpsearch(folder, "list").stdout


def test_values_that_are_not_finite(folder: Path) -> None:
    with connect(url(folder)) as database:
        study = optuna.load_study(study_name="tiny", storage=database.storage)
        for value in (math.inf, -math.inf, 0.5):
            study.add_trial(optuna.trial.create_trial(value=value))
    shown = [trial["value"] for trial in json.loads(hpsearch(folder, "trials", "tiny", "--json").stdout)]
    assert shown == [None, None, None, 0.5]  # the first waits
    best = json.loads(hpsearch(folder, "best", "tiny", "--json").stdout)["best"]
    assert [trial["value"] for trial in best] == [0.5]
    assert "inf" in hpsearch(folder, "trials", "tiny").stdout
