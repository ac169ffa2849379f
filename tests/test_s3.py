"""Weights, pictures and exports in S3, which machines share that have nothing else in common but the database."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import hpsearch
from hpsearch import transfer
from hpsearch.arms import compare
from hpsearch.cli.main import main
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.export import export, pinned, read
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import s3 as storage_s3
from hpsearch.storage.open import create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.verify import verify
from hpsearch.web.server import application
from tests.chain import SMALL, Chain, silent
from tests.s3 import BUCKET, S3Server, running_s3
from tests.web.serving import HOST, Client, local

PLACE = f"s3://{BUCKET}/some/where"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    with running_s3(monkeypatch) as running:
        yield running


def machine(folder: Path, name: str) -> Settings:
    """A machine with a home of its own, and the database and S3 that all share."""
    return Settings(f"sqlite:///{folder / 'study.db'}", folder / name, None, "cpu", artifacts=PLACE)


def test_what_one_machine_trains_another_exports(tmp_path: Path, server: S3Server) -> None:
    one, other, third = (machine(tmp_path, name) for name in ("one", "other", "third"))
    where = f"{PLACE}/exports/small"
    with create(one.storage_url) as database:
        text = SMALL.partition("[space]")[0].replace('name = "small"\n', 'name = "small"\nseeds = 2\n', 1)
        create_study(database, parse(text, "small.toml"), "small")
        Chain(database, one).work("small")
        kinds = {name.split("/")[2] for name in server.names()}
        assert kinds == {"weights", "pictures"}  # the checkpoints of what has ended are gone
        assert not (one.home / "weights").exists()
        assert not (one.home / "artifacts").exists()

        said: list[str] = []
        export(database, load_study(database, "small"), 1, where, other, said.append)
        assert said == []  # the weights were there: nothing trained once more
        assert any("validation accuracy" in line for line in verify(where, third))
        assert hpsearch.load_export(where).classes == ("0", "1", "2", "3", "4")
        with pytest.raises(UsageError, match="exists already"):
            export(database, load_study(database, "small"), 1, where, other, silent)

        plans = [transfer.plan(where, "digits:5-9", None, 2, 1, other)]
        (study,) = transfer.create(database, plans, other)
        Chain(database, third).work(study.name)  # begins with weights that another machine pinned
        assert len(compare([load_study(database, study.name)])[0].values) == 2
        held = pinned(replace(study.spec, model=study.spec.model.model_copy(update={"export": where})), other)
        assert held.model.export == study.spec.model.export


def test_the_dashboard_shows_pictures_from_there(tmp_path: Path, server: S3Server) -> None:
    worker, dashboard = machine(tmp_path, "one"), machine(tmp_path, "other")
    with create(worker.storage_url) as database:
        create_study(database, parse(SMALL.replace("trials = 4", "trials = 1"), "small.toml"), "small")
        Chain(database, worker).work("small")
        assert any("/pictures/" in name for name in server.names())
    with application(dashboard, local()) as both:
        asker = Client(both)
        assert "<h2>Confusions</h2>" in asker.get("/hpsearch/study/1/trial/0", headers={"Host": HOST}).text
        names = [name.rpartition("/")[2] for name in server.names() if "/pictures/" in name]
        assert len(names) > 1
        answers = [asker.get(f"/artifacts/1/1/{name}", headers={"Host": HOST}) for name in names]
        assert all(answer.status_code == 200 for answer in answers)
        assert any(answer.data.startswith(b"\x89PNG") for answer in answers)


def test_a_changed_byte(tmp_path: Path, server: S3Server) -> None:
    settings, where = machine(tmp_path, "one"), f"{PLACE}/exports/small"
    with create(settings.storage_url) as database:
        text = SMALL.partition("[space]")[0].replace('name = "small"\n', 'name = "small"\nseeds = 1\n', 1)
        create_study(database, parse(text, "small.toml"), "small")
        Chain(database, settings).work("small")
        export(database, load_study(database, "small"), 1, where, settings, silent)
    server.change("some/where/exports/small/model.safetensors")
    with pytest.raises(UsageError, match=r"s3://.*/small/model.safetensors: is not what was exported"):
        read(where)
    server.client.delete_object(Bucket=BUCKET, Key="some/where/exports/small/SHA256SUMS")
    with pytest.raises(UsageError, match=r"SHA256SUMS: cannot be read \(it is not there\)"):
        read(where)


def test_when_it_is_away(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage_s3, "ATTEMPTS", 1)
    settings = machine(tmp_path, "one")
    server.stop()
    try:
        with pytest.raises(HpsearchError, match=r"s3://hpsearch/some/where/.*try again once that is mended"):
            read(f"{PLACE}/exports/small")
        with pytest.raises(SystemExit) as leaving:
            main(["verify", f"{PLACE}/exports/small"])
        assert leaving.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1
        with create(settings.storage_url) as database:
            create_study(database, parse(SMALL.replace("trials = 4", "trials = 1"), "small.toml"), "small")
            Chain(database, settings).work("small")  # neither checkpoints nor pictures, but a result
            assert load_study(database, "small").optuna_study.best_trial.number == 0
    finally:
        server.start()


@pytest.mark.parametrize("where", ["s3://", "s3:///prefix"])
def test_no_place_at_all(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["verify", where])
    assert leaving.value.code == 2
    assert "must be s3://BUCKET/PREFIX" in capsys.readouterr().err
