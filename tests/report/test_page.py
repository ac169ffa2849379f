"""The page: whole, offline, safe, and there for studies in every state; its numbers are those of the storage."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.filling import made_up
from hpsearch import confirm
from hpsearch.errors import StorageError, UsageError
from hpsearch.export import export
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.report.drawing import Figure, line
from hpsearch.report.gather import gather
from hpsearch.report.page import csv_of, facts_of, page, study_figures, write
from hpsearch.report.samples import samples
from hpsearch.spec import parse
from hpsearch.storage import fleet, ledger, openings
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.worker import run
from tests.chain import SMALL, Chain, silent
from tests.report.reading import NAMES, drawn, seen, settings
from tests.studies import CANDIDATES


def test_every_figure_is_there(whole: Chain, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    figures = write(whole.database, NAMES, path, whole.settings)
    text = path.read_text()
    titles = set(seen(text).titles)
    for title in (
        "Sample images",
        "Best so far",
        "Rung survival",
        "Learning rates compared",
        "Schedules",
        "Curves of the best trials",
        "Importances",
        "Parallel coordinates",
        "Table 1: over seeds",
        "Accuracy over seeds",
        "Loss over seeds",
        "Confirmation",
        "Final test",
        "Accuracy by class",
        "Confusion matrix, 5 classes",
        "Calibration",
        "Transfer against scratch",
        "Layers",
    ):
        assert title in titles, title
    keys = [figure.key for figure in figures]
    assert len(keys) == len(set(keys))
    assert drawn(text).keys() == {figure.key for figure in figures if figure.traces}
    assert not list(tmp_path.glob(".*"))


def test_it_fetches_nothing(whole: Chain, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(whole.database, NAMES, path, whole.settings)
    text = path.read_text()
    assert all(link.startswith(("data:image/png;base64,", "data:text/csv;base64,")) for link in seen(text).links)
    assert "default-src 'none'" in text
    assert "link" not in seen(text).tags


def test_every_csv_holds_the_recorded_numbers(whole: Chain) -> None:
    study = gather(whole.database, "small")
    figures = {figure.title: figure for figure in study_figures(study, whole.settings)}
    rows = list(csv.DictReader(io.StringIO(csv_of(figures["Best so far"]))))
    trials = whole.search.optuna_study.trials
    assert [float(row["validation_accuracy"]) for row in rows] == [trial.value for trial in trials]
    rows = list(csv.DictReader(io.StringIO(csv_of(figures["Learning rates compared"]))))
    recorded = [row for trial in trials for row in ledger.epochs(whole.database, trial._trial_id)]
    assert [float(row["validation_accuracy"]) for row in rows] == [row["validation_accuracy"] for row in recorded]
    confusion = list(csv.DictReader(io.StringIO(csv_of(figures["Confusion matrix, 5 classes"]))))
    assert sum(int(row["images"]) for row in confusion) == 3 * study.tested[0]["num_images"]
    survival = list(csv.DictReader(io.StringIO(csv_of(figures["Rung survival"]))))
    assert [int(row["trials"]) for row in survival] == [4, 4, 4]


def test_the_links_hold_the_same_csv(whole: Chain, tmp_path: Path) -> None:
    figures = write(whole.database, ["small"], tmp_path / "page.html", whole.settings)
    links = [link for link in seen((tmp_path / "page.html").read_text()).links if "csv" in link]
    assert [base64.b64decode(link.partition(",")[2]).decode() for link in links] == [csv_of(f) for f in figures]


def test_table_one_shows_the_test_of_the_search(whole: Chain) -> None:
    figures = study_figures(gather(whole.database, "small-confirm"), whole.settings)
    table = next(figure for figure in figures if figure.title.startswith("Table 1"))
    record = gather(whole.database, "small").tested[0]["result"]
    row = next(row for row in table.rows if row[0] == record["label"])
    assert row[3] == record["accuracy"]["mean"]
    assert all(row[3] is None for row in table.rows if row[0] != record["label"])


@pytest.fixture
def database(tmp_path: Path):  # type: ignore[no-untyped-def]
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        yield database


@pytest.mark.parametrize("num", [0, 1])
def test_an_empty_study_and_one_with_a_single_trial(num: int, database: Database, tmp_path: Path) -> None:
    for text, name in ((SMALL, "small"), (CANDIDATES, "three")):
        create_study(database, parse(text, "x.toml"), name)
        list(run(database, name, settings(tmp_path), Interruption(), num))
    figures = write(database, ["small", "three"], tmp_path / "page.html", settings(tmp_path))
    text = (tmp_path / "page.html").read_text()
    assert ("empty: no trial has begun" in text) == (num == 0)
    assert ("Best so far" in {figure.title for figure in figures}) == (num == 1)
    json.dumps(drawn(text), allow_nan=False)


def test_a_running_study_with_a_trial_that_diverged(database: Database, tmp_path: Path) -> None:
    from hpsearch.events import EpochDone

    text = SMALL.replace("learning_rate = 0.002", "learning_rate = 0.002\n", 1).replace("high = 1e-1", "high = 1e9")
    create_study(database, parse(text, "small.toml"), "small")
    events = run(database, "small", settings(tmp_path), Interruption(), 4)
    for event in events:
        if isinstance(event, EpochDone) and event.trial == 1:
            break
    write(database, ["small"], tmp_path / "page.html", settings(tmp_path))  # while a trial is running
    assert "1 running" in (tmp_path / "page.html").read_text()
    list(events)
    write(database, ["small"], tmp_path / "page.html", settings(tmp_path))
    json.dumps(drawn((tmp_path / "page.html").read_text()), allow_nan=False)


def test_names_and_reasons_are_no_markup(whole: Chain, database: Database, tmp_path: Path) -> None:
    text = SMALL.replace('name = "small"', 'name = "small"\ndescription = "<img src=x onerror=alert(1)> </script>"', 1)
    create_study(database, parse(text, "small.toml"), "small")
    chain = Chain(database, settings(tmp_path))
    chain.work("small")
    write(database, ["small"], tmp_path / "page.html", chain.settings)
    content = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in content
    assert "&lt;img src=x" in content
    hostile = "</script><b>bold</b>"
    figure = Figure("key", hostile, hostile, ["class"], [[hostile]], [line(hostile, [0], [hostile], "#000000")])
    content = page([(replace(gather(whole.database, "small"), name=hostile), [figure])], [])
    assert hostile not in content
    assert "<b>bold" not in content
    assert content.count("bold") >= 6


def test_a_final_test_that_ended_while_the_split_was_open_counts_as_an_opening(
    database: Database, tmp_path: Path
) -> None:
    text = SMALL.partition("[space]")[0].replace('name = "small"', 'name = "plain"\nseeds = 2')
    create_study(database, parse(text.replace("epochs = 3", "epochs = 1"), "plain.toml"), "plain")
    chain = Chain(database, settings(tmp_path))
    chain.work("plain")
    study = load_study(database, "plain")
    assert dict(facts_of(gather(database, "plain")))["test split"] == "sealed"
    openings.begin(database, study, 0, {"time": "earlier", "again": None, "data": "digits:0-4"})
    assert dict(facts_of(gather(database, "plain")))["test split"] == "opened once, without a result"
    export(database, study, 1, tmp_path / "before", chain.settings, silent)
    assert "opened for this study, and no result" in (tmp_path / "before" / "README.md").read_text()
    final_test(database, study, chain.settings, "the power was cut", silent)
    assert dict(facts_of(gather(database, "plain")))["test split"] == "opened 2 times, 1 with a result"
    made = export(database, study, 1, tmp_path / "after", chain.settings, silent)
    assert made.test is not None
    assert made.test.openings == 2


def test_the_test_of_another_study_of_the_name_is_not_that_of_a_confirmation(whole: Chain, tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        link = {confirm.LINK_KEY: json.dumps(confirm.link_of(whole.confirmation))}
        create_study(database, whole.confirmation.spec, "small-confirm", attributes=link)
        create_study(database, whole.search.spec, "small")
        openings.begin(database, load_study(database, "small"), 0, {"results": []})
        assert not any(gather(database, "small-confirm").tests)
    assert any(gather(whole.database, "small-confirm").tests)


def test_no_name_of_a_study_stands_in_the_way_of_a_figure(database: Database, tmp_path: Path) -> None:
    """Scripts find figures by their ids, and the first element of an id is found."""
    names = ["small-best", "figures", "small"]
    for name in names:
        create_study(database, parse(SMALL.replace("epochs = 3", "epochs = 1"), "small.toml"), name, 1)
        Chain(database, settings(tmp_path)).work(name)
    write(database, names, tmp_path / "page.html", settings(tmp_path))
    text = (tmp_path / "page.html").read_text()
    ids = re.findall(r'<(?:section|div|script)[^>]* id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert drawn(text).keys() < set(ids)


def test_a_report_downloads_no_images(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def download(*given: object, **_: object) -> None:
        asked.append(given)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    create_study(database, parse(SMALL.replace("digits:0-4", "cifar100"), "small.toml"), "small")
    figure = samples(gather(database, "small"), settings(tmp_path))
    assert "cifar100 is not here" in figure.caption
    assert asked == []


def test_a_study_that_people_have_paused_or_stopped_waits_for_no_worker(database: Database, tmp_path: Path) -> None:
    create_study(database, parse(SMALL.replace("epochs = 3", "epochs = 1"), "small.toml"), "small", 2)
    study = load_study(database, "small")
    list(run(database, "small", settings(tmp_path), Interruption(), 1))
    for state, wanted in (("running", "waiting for workers"), ("paused", "paused"), ("stopped", "stopped")):
        fleet.control(database, study.study_id, state)
        assert dict(facts_of(gather(database, "small")))["state"] == wanted


def test_a_study_whose_workers_went_away_is_not_running(sqlite: Database) -> None:
    made_up(sqlite, "s", 4, 2, prune=False).fill(4, leave_running=2)
    facts = dict(facts_of(gather(sqlite, "s")))
    assert (facts["state"], facts["trials"]) == ("running", "2 of 4 ended, 2 running")
    with sqlite.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0))
    facts = dict(facts_of(gather(sqlite, "s")))
    assert (facts["state"], facts["trials"]) == ("waiting for workers", "2 of 4 ended, 2 running (2 abandoned)")


def test_no_text_is_a_formula_to_a_spreadsheet() -> None:
    rows = [["=1+1", -1.5], ["@a", None], ["-2", 3], ["-x", 0], ["dark, light", 1]]
    rows = list(csv.reader(io.StringIO(csv_of(Figure("key", "title", "", ["class", "+a"], rows)))))
    assert rows == [["class", "'+a"], ["'=1+1", "-1.5"], ["'@a", ""], ["-2", "3"], ["'-x", "0"], ["dark, light", "1"]]


def test_nothing_is_left_of_a_page_that_was_interrupted(
    whole: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(whole.database, ["small"], tmp_path / "page.html", whole.settings)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="-o: is empty"):
        write(whole.database, ["small"], Path(), whole.settings)


def test_the_data_need_not_be_there(database: Database, tmp_path: Path) -> None:
    text = SMALL.replace("digits:0-4", f"folder:{tmp_path / 'gone'}")
    create_study(database, parse(text, "small.toml"), "small")
    write(database, ["small"], tmp_path / "page.html", settings(tmp_path))
    assert "No images: " in (tmp_path / "page.html").read_text()


def test_what_cannot_be_written(whole: Chain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a text")
    with pytest.raises(UsageError, match="cannot be written"):
        write(whole.database, ["small"], tmp_path / "file" / "page.html", whole.settings)
    with pytest.raises(StorageError, match="did you mean"):
        write(whole.database, ["smal"], tmp_path / "page.html", whole.settings)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
