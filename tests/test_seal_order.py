"""The final test: recorded before the seal is opened, of the winner alone, and its first result counts."""

from pathlib import Path
from typing import Any

import pytest

from hpsearch.export import export, read
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import openings
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.trained import choose
from hpsearch.worker import run
from tests.chain import silent
from tests.studies import CANDIDATES


@pytest.fixture
def study(sqlite: Database, settings: Settings) -> LoadedStudy:
    """Three candidates over two seeds, finished."""
    text = CANDIDATES.replace("seeds = 5", "seeds = 2").replace('name = "race"', 'name = "none"')
    create_study(sqlite, parse(text, "three.toml"), "three")
    list(run(sqlite, "three", settings, Interruption()))
    return load_study(sqlite, "three")


def test_it_is_recorded_before_the_seal_is_opened(
    sqlite: Database, settings: Settings, study: LoadedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed while the images are read has opened the test split."""
    seen: list[list[dict[str, Any]]] = []

    def killed(*_: object) -> None:
        seen.append(openings.openings(sqlite, study))
        raise KeyboardInterrupt

    monkeypatch.setattr("hpsearch.final_test.open_seal", killed)
    with pytest.raises(KeyboardInterrupt):
        final_test(sqlite, study, settings, None, silent)
    (before,) = seen
    assert len(before) == 1
    assert openings.openings(sqlite, study) == before
    assert "result" not in before[0]


def test_of_candidates_the_winner_alone_is_tested(sqlite: Database, settings: Settings, study: LoadedStudy) -> None:
    chosen = [one.label for one in choose(sqlite, study)]
    assert len(chosen) == 3
    record = final_test(sqlite, study, settings, None, silent)
    assert [result["label"] for result in record["results"]] == chosen[:1]
    assert record["result"] == record["results"][0]


def test_an_export_tells_the_first_result(
    sqlite: Database, settings: Settings, study: LoadedStudy, tmp_path: Path
) -> None:
    """After a look that came to nothing; a later one adds to their number only."""
    openings.begin(sqlite, study, 0, {"time": "2020-01-01T00:00:00+00:00"})
    record = final_test(sqlite, study, settings, "the first was cut short", silent)
    other = {**record["result"], "accuracy": {**record["result"]["accuracy"], "mean": 0.125}}
    later = {**record, "time": "2040-01-01T00:00:00+00:00", "result": other, "results": [other]}
    openings.begin(sqlite, study, 2, later)
    export(sqlite, study, 1, tmp_path / "out", settings, silent)
    told = read(tmp_path / "out")[0].test
    assert told is not None
    assert told.accuracy.mean == record["result"]["accuracy"]["mean"] != 0.125
    assert (told.time, told.openings) == (record["time"], 3)
