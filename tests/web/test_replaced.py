"""What was deleted or replaced under a dashboard that runs is not shown as what came in its place."""

import gzip
import json
from pathlib import Path

import optuna

from benchmarks.filling import made_up
from hpsearch.storage.open import create
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
