"""What was deleted or replaced under a dashboard that runs is not shown as what came in its place."""

import gzip
import json
import re
import shutil
from pathlib import Path

import optuna

from benchmarks.filling import MadeUp, made_up
from hpsearch.storage.open import create
from hpsearch.storage.studies import load_study
from tests.web.serving import HOST, Opener, local, settings_for


def test_live_answers_of_a_reused_id_are_new(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "old", 3, 1, prune=False).fill(3)
    asker = client(settings, local())
    paths = ("study/1?live=1", "study/1/trials?live=1", "study/1/best?live=1", "study/1/trial/1?live=1")
    paths = (*paths, "compare?study=1&t=0,1&live=1")

    def shown() -> list[str]:
        answers = [asker.get(f"/hpsearch/{path}", headers={"Host": HOST}).data for path in paths]
        return [json.dumps(json.loads(gzip.decompress(answer))["parts"]) for answer in answers]

    before = shown()
    with create(settings.storage_url) as database:
        optuna.delete_study(study_name="old", storage=database.storage)
        filled = made_up(database, "new", 2, 1, prune=False)
        filled.random.seed(1)
        filled.fill(2)
    assert [one == other for one, other in zip(before, shown(), strict=True)] == [False] * len(paths)
    assert "2 of 2 trials" in shown()[0]


def test_a_foreign_study_that_is_created_again_is_not_the_old_one(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    asker = None
    for values in ([1.0, 2.0, 3.0], [10.0, 20.0]):
        with create(settings.storage_url) as database:
            if asker is not None:
                optuna.delete_study(study_name="foreign", storage=database.storage)
            study = optuna.create_study(storage=database.storage, study_name="foreign")
            for value in values:
                study.add_trial(optuna.trial.create_trial(value=value))
        asker = asker or client(settings, local())
        trials = asker.get("/api/studies/1", headers={"Host": HOST}).json["trials"]
        assert [trial["values"] for trial in trials] == [[value] for value in values]


def test_a_database_file_that_is_replaced(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "one", 2, 1, prune=False).fill(2)
    asker = client(settings, local())

    def shown() -> list[tuple[int, set[str]]]:
        pages = [asker.get(path, headers={"Host": HOST}) for path in ("/hpsearch/", "/api/studies")]
        return [(page.status_code, {*re.findall(r"\b(?:one|two)\b", page.text)}) for page in pages]

    assert shown() == [(200, {"one"})] * 2
    for file in tmp_path.glob("s.db*"):
        file.rename(tmp_path / f"away-{file.name}")
    assert shown() == [(503, set())] * 2
    assert not list(tmp_path.glob("s.db*"))  # an empty one would lie in the way of a backup
    with create(settings.storage_url) as database:
        made_up(database, "two", 2, 1, prune=False).fill(2)
    assert shown() == [(200, {"two"})] * 2
    for file in tmp_path.glob("s.db*"):
        file.unlink()
    for file in tmp_path.glob("away-*"):
        file.rename(tmp_path / file.name.removeprefix("away-"))
    assert shown() == [(200, {"one"})] * 2


def test_a_study_that_is_restored_has_the_trials_of_the_backup(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 6, 1, prune=False)
        filled.fill(3)
    shutil.copy(tmp_path / "s.db", tmp_path / "backup")
    with create(settings.storage_url) as database:
        MadeUp(database, load_study(database, "s"), prune=False).fill(3)
    asker = client(settings, local())
    for num in (6, 3):
        assert len(asker.get("/api/studies/1", headers={"Host": HOST}).json["trials"]) == num
        assert f"{num} of 6 trials" in asker.get("/hpsearch/study/1", headers={"Host": HOST}).text
        for file in tmp_path.glob("s.db*"):
            file.unlink()
        shutil.copy(tmp_path / "backup", tmp_path / "s.db")
