"""Studies that cannot be read, or are not what they were: each says so, and none takes the others down."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages._rdb import models
from sqlalchemy import delete, update
from sqlalchemy.exc import OperationalError

from benchmarks.filling import made_up
from hpsearch.cli.main import main
from hpsearch.confirm import LINK_KEY
from hpsearch.settings import Settings
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import (
    CREATED_KEY,
    RECIPE_KEY,
    SPEC_KEY,
    LoadedStudy,
    create_study,
    load_study,
    study_names,
)
from hpsearch.storage.tables import CONTROL, STUDY_USER_ATTRIBUTES, USER_ATTRIBUTES
from hpsearch.web import study_pages
from hpsearch.web.source import Source
from tests.web.serving import HOST, Opener, local, settings_for

SAME = {"Host": HOST, "Origin": f"http://{HOST}"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a home folder with two studies, `odd` and `sound`."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        for name in ("odd", "sound"):
            made_up(database, name, 4, 2, prune=False).fill(4)
    return settings


def rewrite(database: Database, old: str, new: str) -> None:
    """Change what stands in the specification of `odd`."""
    study = load_study(database, "odd").optuna_study
    assert old in study.user_attrs[SPEC_KEY]
    study.set_user_attr(SPEC_KEY, study.user_attrs[SPEC_KEY].replace(old, new))


def test_a_study_without_its_row_of_control(client: Opener, settings: Settings) -> None:
    with create(settings.storage_url) as database, database.engine.begin() as connection:
        connection.execute(delete(CONTROL).where(CONTROL.c.study_id == 1))
    asker = client(settings, local())
    remedy = "`hpsearch fsck odd --repair` puts it back"
    page = asker.get("/hpsearch/", headers=SAME)
    assert (page.status_code, remedy in page.text, "4 of 4 trials" in page.text) == (200, True, True)
    metrics = asker.get("/hpsearch/metrics", headers=SAME)
    assert (metrics.status_code, 'study="sound"' in metrics.text, 'study="odd"' in metrics.text) == (200, True, False)
    for path in ("", "/best", "?live=1"):
        own = asker.get(f"/hpsearch/study/1{path}", headers=SAME)
        assert (own.status_code, remedy in own.text) == (409, True)
    assert asker.get("/api/studies/1", headers=SAME).status_code == 200  # optuna-dashboard, without our note
    with pytest.raises(SystemExit) as ended:
        main(["fsck", "odd", "--repair", "--storage", settings.storage_url])
    assert ended.value.code == 0
    assert asker.get("/hpsearch/study/1", headers=SAME).status_code == 200


def test_a_study_that_is_deleted_while_the_page_is_made(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(settings.storage_url) as database:
        source, counted = Source(database, settings), study_pages.progress
        study_pages.all_studies(source)

        def delete_first(database: Database, study: LoadedStudy):  # type: ignore[no-untyped-def]
            if study.name == "odd":
                with connect(settings.storage_url) as another:
                    optuna.delete_study(study_name="odd", storage=another.storage)
            return counted(database, study)

        monkeypatch.setattr(study_pages, "progress", delete_first)
        rows = study_pages.all_studies(source)["rows"]
    assert [row["listed"].name for row in rows if "now" in row] == ["sound"]
    assert [row["problem"] for row in rows if "problem" in row] == [
        "study odd has been deleted meanwhile: create it again"
    ]


def test_a_study_keeps_its_name_in_optuna_dashboard(client: Opener, settings: Settings) -> None:
    with create(settings.storage_url) as database:
        optuna.create_study(storage=database.storage, study_name="foreign")
    asker = client(settings, local(allow_write=True))
    for path in ("/api/studies/1/rename", "/api/studies/1/rename/"):
        refused = asker.post(path, headers=SAME, json={"study_name": "other"})
        assert (refused.status_code, "keeps its name" in refused.json["reason"]) == (422, True)
    assert asker.post("/api/studies/3/rename", headers=SAME, json={"study_name": "other"}).status_code == 201
    with create(settings.storage_url) as database:
        assert study_names(database) == ["odd", "sound", "other"]


@pytest.mark.parametrize(
    ("old", "new"), [('"trials": 4', '"trials": 0'), ('"asha"', '"of-tomorrow"'), ("{", "["), ("", None)]
)
def test_a_study_of_another_version_or_damaged(client: Opener, settings: Settings, old: str, new: str | None) -> None:
    with create(settings.storage_url) as database:
        if new is None:
            table = STUDY_USER_ATTRIBUTES
            cut = update(table).where(table.c.study_id == 1, table.c.key == SPEC_KEY).values(value_json='"{')
            with database.engine.begin() as connection:
                connection.execute(cut)
        else:
            rewrite(database, old, new)
        optuna.create_study(storage=database.storage, study_name="foreign")
    asker = client(settings, local())
    for path, status in (("/", 200), ("/study/1", 200), ("/study/1/best", 404)):
        page = asker.get(f"/hpsearch{path}", headers=SAME)
        assert (page.status_code, "made by another version of hpsearch" in page.text) == (status, True)
    assert "not made by hpsearch" in asker.get("/hpsearch/study/3", headers=SAME).text
    assert asker.get("/hpsearch/metrics", headers=SAME).status_code == 200
    if new is not None:  # what is no JSON, Optuna itself cannot read
        assert asker.get("/api/studies/1", headers=SAME).status_code == 200


@pytest.mark.parametrize("text", ["no JSON", "[]", 5])
def test_a_damaged_link_hides_no_other_study(client: Opener, settings: Settings, text: object) -> None:
    with create(settings.storage_url) as database:
        create_study(database, load_study(database, "odd").spec, "odd-confirm")
        load_study(database, "odd-confirm").optuna_study.set_user_attr(LINK_KEY, text)
        (row,) = [row for row in study_pages.all_studies(Source(database, settings))["rows"] if "problem" in row]
        assert "the record of what it belongs to is damaged" in row["problem"]
    asker = client(settings, local())
    assert "sound" in asker.get("/hpsearch/", headers=SAME).text
    assert asker.get("/hpsearch/study/1/best", headers=SAME).status_code == 409


def test_other_damage_takes_down_no_page(client: Opener, settings: Settings) -> None:
    """A budget of nothing, a recipe that is none, and a trial that was deleted."""
    with create(settings.storage_url) as database, database.engine.begin() as connection:
        connection.execute(update(CONTROL).where(CONTROL.c.study_id == 1).values(max_trials=0))
        table = USER_ATTRIBUTES
        connection.execute(
            update(table).where(table.c.key == RECIPE_KEY, table.c.trial_id == 3).values(value_json='"x"')
        )
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for table in models.BaseModel.metadata.sorted_tables[::-1]:
            if "trial_id" in table.c:
                connection.execute(delete(table).where(table.c.trial_id == 2))
    asker = client(settings, local())
    for path in ("", "study/1", "study/1?live=1", "study/1/best", "study/1/trials", "study/1/trial/2", "workers"):
        assert asker.get(f"/hpsearch/{path}", headers=SAME).status_code == 200, path
    assert asker.get("/hpsearch/study/1/trial/1", headers=SAME).status_code == 404
    assert "<h1>Trial 3</h1>" in asker.get("/hpsearch/study/1/trial/3", headers=SAME).text
    for command in (["trials", "odd"], ["best", "odd"], ["report", "odd", "-o", str(settings.home / "page.html")]):
        with pytest.raises(SystemExit) as left:
            main([*command, "--storage", settings.storage_url])
        assert left.value.code == 0


@pytest.mark.parametrize("epochs", [0, None, "9", -1])
def test_a_recipe_with_epochs_that_are_none(client: Opener, settings: Settings, epochs: object) -> None:
    with create(settings.storage_url) as database, database.engine.begin() as connection:
        recipe = json.dumps({"learning_rate": 0.1, "epochs": epochs})
        table = USER_ATTRIBUTES
        connection.execute(update(table).where(table.c.key == RECIPE_KEY).values(value_json=recipe))
    page = client(settings, local()).get("/hpsearch/study/1/trial/0", headers=SAME)
    assert (page.status_code, "2 of 2" in page.text) == (200, True)


def test_a_confirmation_whose_search_cannot_be_read_is_shown(client: Opener, settings: Settings) -> None:
    with create(settings.storage_url) as database:
        odd = load_study(database, "odd")
        link = {"kind": "confirm", "study": "odd", "created": odd.created}
        create_study(database, odd.spec, "odd-confirm", attributes={LINK_KEY: json.dumps(link)})
        rewrite(database, '"trials": 4', '"trials": 0')
    assert client(settings, local()).get("/hpsearch/study/3/best", headers=SAME).status_code == 200


def test_optuna_dashboard_says_when_the_storage_is_away(
    client: Opener, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = client(settings, local())
    large = "99999999999999999999"
    for path in (
        f"/api/studies/{large}/plot/contour",
        "/api/studies/99999999999",
        "/csv/99999999999",
        f"/artifacts/{large}/1/abc",
        f"/artifacts/1/{large}/abc",
    ):
        assert asker.get(path, headers=SAME).status_code == 404
    away = OperationalError("SELECT 1", {}, Exception("secret-host is down"))
    monkeypatch.setattr("hpsearch.web.mount._identities", lambda _connection: (_ for _ in ()).throw(away))
    for path in ("/api/studies", "/api/studies/1"):
        answer = asker.get(path, headers=SAME)
        assert (answer.status_code, "secret-host" in answer.text) == (503, False)


def test_the_trials_of_a_deleted_study_are_nobodys_evidence(settings: Settings) -> None:
    """SQLite gives the id of a deleted study again, and Optuna's cache of trials goes by ids."""

    def confirming(name: str, values: list[float]) -> None:
        with connect(settings.storage_url) as another:
            study = optuna.create_study(storage=another.storage, study_name=name, direction="maximize")
            study.set_user_attr(SPEC_KEY, load_study(another, "sound").spec.to_json())
            study.set_user_attr(CREATED_KEY, f"at {values}")
            for value in values:
                study.add_trial(optuna.trial.create_trial(value=value))

    def seen() -> list[float | None]:
        listed = source.find(3)
        assert listed is not None
        study = source.load(listed)
        assert study is not None
        return [trial.value for trial in study.optuna_study.get_trials(deepcopy=False)]

    with create(settings.storage_url) as database:
        source = Source(database, settings)
        confirming("third", [0.5, 0.6])
        assert seen() == [0.5, 0.6]
        with connect(settings.storage_url) as another:
            optuna.delete_study(study_name="third", storage=another.storage)
        confirming("third", [0.1])
        assert seen() == [0.1]
