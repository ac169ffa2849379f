"""Sentences of the dashboard that say what is drawn, and in which order."""

import re
from pathlib import Path

import pytest

from benchmarks.filling import made_up
from hpsearch.storage import fleet
from hpsearch.storage.open import create
from hpsearch.web import figures
from tests.web.serving import HOST, Opener, local, settings_for
from tests.web.test_figures import row


def test_what_draws_a_sample_says_so(client: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "s", 12, 2, prune=False).fill(12)
    asker = client(settings, local())

    def page(path: str) -> str:
        return asker.get(f"/hpsearch/{path}", headers={"Host": HOST}).text

    assert "Curves show 12 trials." in page("study/1")
    monkeypatch.setattr(figures, "MAX_CURVES", 10)
    assert "Curves and parallel coordinates show 10 of 12 trials" in page("study/1")
    assert "Complete trials first" not in page("study/1/trials")
    for sort in ("value", "-value"):
        assert "Complete trials first" in page(f"study/1/trials?sort={sort}")


def test_a_thinned_history_says_so() -> None:
    few = [row(n, "PRUNED", 0.5, 1) for n in range(3)]
    many = [row(n, "COMPLETE", 0.5, 1) for n in range(3, figures.MAX_DOTS + 4)]
    names = [trace["name"] for trace in figures.history([*few, *many], "validation_loss", False)["traces"]]
    assert names == ["stopped early", "complete, an even sample", "best so far"]


def test_a_stopped_study_has_no_time_left(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "s", 12, 2, prune=False).fill(2)
        fleet.control(database, 1, "stopped")
    page = client(settings, local()).get("/hpsearch/", headers={"Host": HOST}).text
    assert re.findall(r'data-label="Time left">([^<]*)<', page) == ["\N{EN DASH}"]
