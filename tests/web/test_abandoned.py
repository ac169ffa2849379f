"""Trials whose worker has gone away: every page calls them abandoned, and says who goes on with them."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import update

from benchmarks.filling import made_up
from hpsearch.cli.watch import view
from hpsearch.storage import fleet
from hpsearch.storage.open import connect, create
from hpsearch.storage.tables import LEASES, WORKERS
from hpsearch.web import study_pages
from hpsearch.web.source import Source
from tests.cli.inside import hpsearch
from tests.web.serving import HOST, Opener, local, settings_for


@pytest.fixture
def words(client: Opener, tmp_path: Path) -> Callable[[str], str]:
    """What a page says of a study with trials 4 and 5 abandoned."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 6, 4, prune=False)
        filled.fill(6, leave_running=2)
        with database.engine.begin() as connection:
            connection.execute(update(LEASES).values(expires=0.0))
    asker = client(settings, local())

    def said(path: str) -> str:
        page = asker.get(f"/hpsearch/{path}", headers={"Host": HOST}).text
        return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.partition("<main")[2]))

    return said


def test_a_silent_worker_is_said_to_be_silent(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 6, 4, prune=False)
        filled.fill(6, leave_running=2)
        filled.beat()

        def shown() -> tuple[str, dict[str, Any], str]:
            """What `status` says of the worker, with and without --json, and the study's page."""
            table = hpsearch(tmp_path, "status", "s", "--storage", settings.storage_url).stdout
            known = json.loads(hpsearch(tmp_path, "status", "s", "--json", "--storage", settings.storage_url).stdout)
            source = Source(database, settings)
            (listed,) = source.listed()
            context, _ = study_pages.one_study(source, listed, filled.study, with_figures=False)
            console = Console(width=200, file=io.StringIO(), record=True)
            console.print(view(context))
            (worker,) = known["workers"]
            return table, worker, console.export_text()

        with database.engine.begin() as connection:
            connection.execute(update(WORKERS).values(seen=0.0))
        table, worker, watched = shown()  # its leases last: an epoch may take as long
        assert (worker["state"], worker["answer"], worker["holds"]) == ("training", "as asked", True)
        assert all(word in text for text in (table, watched) for word in ("training", "as asked", "12,346"))
        with database.engine.begin() as connection:
            connection.execute(update(LEASES).values(expires=0.0))
        table, worker, watched = shown()
        assert (worker["state"], worker["answer"], worker["images_per_second"]) == ("silent", "silent", 0.0)
        for text in (table, watched):
            assert text.count("silent") == 2
            assert "training" not in text
            assert "12,346" not in text


def test_every_page_says_so(words: Callable[[str], str], tmp_path: Path) -> None:
    trial = words("study/1/trial/5")
    assert "State abandoned" in trial
    assert "last worker made-up:1:0 " in trial
    assert "at once" not in trial
    assert words("study/1/trials").count(" abandoned ") == 2
    assert "state complete abandoned" in words("compare?study=1&t=0,5")
    running = words("study/1").partition("Running now")[2]
    assert running.count("abandoned by made-up:1") == 2
    settings = settings_for(tmp_path)
    with connect(settings.storage_url) as database:
        source = Source(database, settings)
        (listed,) = source.listed()
        study = source.load(listed)
        assert study is not None
        context, _ = study_pages.one_study(source, listed, study, with_figures=False)
    (table,) = [part for part in view(context).renderables if hasattr(part, "columns")]
    assert list(table.columns[-1].cells) == ["abandoned by made-up:1"] * 2


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("running", "2 abandoned: the next worker takes them"),
        ("paused", "2 abandoned: a worker takes them after hpsearch resume"),
        ("stopped", "2 abandoned: a worker takes them after hpsearch resume"),
    ],
)
def test_who_goes_on_with_them(words: Callable[[str], str], tmp_path: Path, state: str, sentence: str) -> None:
    url = settings_for(tmp_path).storage_url
    with connect(url) as database:
        fleet.control(database, 1, state)
    page = words("study/1")
    for said in ("waiting for workers" if state == "running" else state, sentence, "nothing is running"):
        assert said in page
    assert sentence in hpsearch(tmp_path, "status", "s", "--storage", url).stdout
