"""Metrics as Prometheus reads them, and who may read them."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from benchmarks.filling import made_up
from hpsearch.settings import Settings
from hpsearch.storage.events import KINDS
from hpsearch.storage.open import create
from hpsearch.storage.tables import LEASES, WORKERS
from tests.web.serving import HOST, TOKEN, Opener, local, settings_for

PATH = "/hpsearch/metrics"


def scraped(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def test_what_stands_there(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "made-up", 40, 9)
        filled.fill(40, leave_running=2)
        filled.beat()  # a worker that was silent for a minute would not count
    answer = client(settings, local()).get(PATH, headers={"Host": HOST})
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    found = scraped(answer.text)
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in found.items()
        if name == "hpsearch_trials" and ("study", "made-up") in labels
    }
    assert sum(states.values()) == 40
    assert states["running"] == 2
    assert found["hpsearch_study_state", frozenset({("study", "made-up"), ("state", "running")})] == 1
    assert found["hpsearch_study_state", frozenset({("study", "made-up"), ("state", "paused")})] == 0
    assert 0 < found["hpsearch_best_value", frozenset({("study", "made-up")})] < 1
    workers = {dict(labels)["state"]: value for (name, labels), value in found.items() if name == "hpsearch_workers"}
    assert sum(workers.values()) >= 1
    assert any(name == "hpsearch_images_per_second" and value > 0 for (name, _), value in found.items())


def test_what_has_not_happened_is_a_zero(client: Opener, tmp_path: Path) -> None:
    """An alarm sees a rise from zero, and none from nothing."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "made-up", 4, 2).fill(4, leave_running=1)  # whose worker gives no sign of life
    found = scraped(client(settings, local()).get(PATH, headers={"Host": HOST}).text)
    assert found["hpsearch_images_per_second", frozenset({("study", "made-up")})] == 0
    for kind in KINDS:
        assert ("hpsearch_events", frozenset({("study", "made-up"), ("kind", kind)})) in found
    assert found["hpsearch_events", frozenset({("study", "made-up"), ("kind", "crashed")})] == 0


def test_a_worker_in_a_long_epoch_is_not_silent(client: Opener, tmp_path: Path) -> None:
    """A sign comes with each epoch; until its lease runs out, a worker owes none."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "made-up", 4, 2)
        filled.fill(4, leave_running=1)
        filled.beat()
        asker = client(settings, local())
        for expires, state in ((LEASES.c.expires, "training"), (0.0, "silent")):
            with database.engine.begin() as connection:
                connection.execute(update(WORKERS).values(seen=WORKERS.c.seen - 90))
                connection.execute(update(LEASES).values(expires=expires))
            found = scraped(asker.get(PATH, headers={"Host": HOST}).text)
            assert found["hpsearch_workers", frozenset({("state", state)})] == 1
            speed = found["hpsearch_images_per_second", frozenset({("study", "made-up")})]
            assert (speed > 0) == (state == "training")


def test_only_with_the_token(settings: Settings, client: Opener) -> None:
    asker = client(settings, local(token=TOKEN))

    def status(path: str, authorization: str | None) -> int:
        given = {"Authorization": authorization} if authorization else {}
        return asker.get(path, headers={"Host": HOST} | given).status_code

    assert status(PATH, f"Bearer {TOKEN}") == 200
    assert status(PATH, None) == status(PATH, "Basic eDp5") == status(PATH, "Bearer ") == 401
    assert status("/hpsearch/", f"Bearer {TOKEN}") == 401  # it opens nothing else
    assert [status(PATH, "Bearer wrong") for _ in range(6)][-1] == 429
    assert status(PATH, f"Bearer {TOKEN}") == 429  # or guessing would only have to go on


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_token_of_any_letters(settings: Settings, client: Opener, encoding: str) -> None:
    token = "pässwörter-1234567"
    sent = {"Host": HOST, "Authorization": f"Bearer {token}".encode(encoding).decode("latin-1")}  # WSGI's way
    assert client(settings, local(token=token)).get(PATH, headers=sent).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_they_are_read_only(settings: Settings, client: Opener, method: str) -> None:
    answer = client(settings, local()).open(PATH, method=method, headers={"Host": HOST, "Origin": f"http://{HOST}"})
    assert answer.status_code in (403, 405)
