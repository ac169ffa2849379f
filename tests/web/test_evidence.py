"""Best and Studies, once a study has been confirmed, tested and exported: what they say, and the download."""

import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from werkzeug.test import Client

from hpsearch import confirm
from hpsearch.export import export
from hpsearch.export_schema import FILES, SUMS
from hpsearch.final_test import final_test
from hpsearch.settings import Settings
from hpsearch.statistics import Estimate
from hpsearch.storage import openings
from hpsearch.storage.open import create
from hpsearch.web.evidence import export_folder, export_size, interval
from hpsearch.web.words import DASH, metric
from tests.chain import Chain, make, silent
from tests.web.serving import HOST, Opener, local, settings_for

METRIC = "validation_accuracy"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chain, Settings]]:
    """A study with everything that follows a search."""
    folder = tmp_path_factory.mktemp("finished")
    settings = settings_for(folder)
    with create(settings.storage_url) as database:
        chain = make(database, folder)
        final_test(database, chain.search, chain.settings, None, silent)
        export(database, chain.search, 1, export_folder(folder, chain.search), chain.settings, silent)
        yield chain, settings


def page(client: Client, path: str) -> str:
    answer = client.get(f"/hpsearch/{path}", headers={"Host": HOST})
    assert answer.status_code == 200
    return answer.text


def test_best_shows_what_it_rests_on(finished: tuple[Chain, Settings], client: Opener) -> None:
    chain, settings = finished
    shown = page(client(settings, local()), f"study/{chain.search.study_id}/best")
    found = confirm.result(chain.confirmation)
    for one in found.standings:
        assert one.label in shown
        assert one.verdict in shown
        assert interval(one.over_seeds, METRIC) in shown
        assert metric(one.over_seeds.mean, METRIC) in shown
    assert f"{found.seeds_done} of 3 seeds done" in shown
    assert "On the test split" in shown
    folder = export_folder(settings.home, chain.search)
    assert f"hpsearch transfer {folder} --data" in shown
    assert "Download the export" in shown
    of_candidates = page(client(settings, local()), f"study/{chain.confirmation.study_id}/best")
    assert "all candidates" in of_candidates
    assert "hpsearch final-test small --show\n" in of_candidates  # its own has no seal, and that one was opened
    assert "Download the export" not in of_candidates


def test_studies_shows_the_confirmed_interval(finished: tuple[Chain, Settings], client: Opener) -> None:
    chain, settings = finished
    first = confirm.result(chain.confirmation).standings[0].over_seeds
    shown = page(client(settings, local()), "")
    assert f"confirmed: {metric(first.mean, METRIC)} ({interval(first, METRIC)})" in shown


def test_an_interval_of_accuracies_is_shown_within_their_bounds() -> None:
    found = Estimate(3, 0.99, 0.01, -0.01, 1.02)
    assert interval(found, METRIC) == "0.00 % to 100.00 %"
    assert interval(found, "validation_loss") == "0.0000 to 1.0200"
    assert interval(Estimate(1, 0.9, math.nan, math.nan, math.nan), METRIC) == DASH


def test_best_tells_of_every_opening(finished: tuple[Chain, Settings], client: Opener) -> None:
    chain, settings = finished
    (first,) = openings.openings(chain.database, chain.search)
    results = [one | {"planned": 9, "lost": 2} for one in first["results"]]
    again = {**first, "again": "labels were mended", "other_images": first["time"], "results": results}
    without = {key: value for key, value in again.items() if key not in ("result", "results", "other_images")}
    openings.begin(chain.database, chain.search, 1, again)
    openings.begin(chain.database, chain.search, 2, without)
    shown = page(client(settings, local()), f"study/{chain.search.study_id}/best")
    assert shown.count("again: labels were mended") == 2
    assert shown.count(f"other images than on {first['time']}") == 1
    assert shown.count("no result") == 1
    assert shown.count(f">{len(results[0]['seeds'])} of 9; 2 diverged or failed<") == len(results)
    for number in (1, 2):
        openings.withdraw(chain.database, chain.search, number)


def test_the_export_of_an_earlier_study_of_that_name_is_not_offered(finished: tuple[Chain, Settings]) -> None:
    chain, settings = finished
    folder = export_folder(settings.home, chain.search)
    assert export_size(folder, chain.search)
    later = datetime.now(UTC) + timedelta(seconds=5)
    assert export_size(folder, replace(chain.search, created=later.isoformat())) is None


def test_the_download_is_the_export_and_nothing_else(finished: tuple[Chain, Settings], client: Opener) -> None:
    chain, settings = finished
    folder, browser = export_folder(settings.home, chain.search), client(settings, local())
    path = f"/hpsearch/study/{chain.search.study_id}/export.zip"
    (folder / "private.txt").write_text("not of an export")
    answer = browser.get(path, headers={"Host": HOST}, buffered=True)
    assert answer.headers["Content-Disposition"] == "attachment; filename=small.zip"
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert content == {f"small/{name}": (folder / name).read_bytes() for name in (*FILES, SUMS)}
    (folder / "private.txt").unlink()


def test_a_link_out_of_the_export_is_not_followed(
    finished: tuple[Chain, Settings], client: Opener, tmp_path: Path
) -> None:
    chain, settings = finished
    card, browser = export_folder(settings.home, chain.search) / "README.md", client(settings, local())
    path, kept = f"/hpsearch/study/{chain.search.study_id}/export.zip", card.read_bytes()
    (tmp_path / "secret").write_text("secret")
    card.unlink()
    card.symlink_to(tmp_path / "secret")
    assert browser.get(path, headers={"Host": HOST}, buffered=True).status_code == 404
    card.unlink()
    assert browser.get(path, headers={"Host": HOST}, buffered=True).status_code == 404
    card.write_bytes(kept)
    assert browser.get(path, headers={"Host": HOST}, buffered=True).status_code == 200
