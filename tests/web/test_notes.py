"""What optuna-dashboard shows of a study: a note and figures, without anything being written."""

import json
from pathlib import Path

import optuna
import plotly.io

from benchmarks.filling import made_up
from hpsearch.settings import Settings
from hpsearch.storage.open import create
from tests.web.serving import HOST, Opener, local, settings_for


def test_note_and_figures(client: Opener, settings: Settings) -> None:
    asker = client(settings, local())
    found = asker.get("/api/studies/1", headers={"Host": HOST}).json
    note = found["note"]["body"]
    for part in (
        "**Question.** A made-up study",
        "38 of 40 trials ended, best",
        "learning rate",
        "hpsearch worker made-up",
    ):
        assert part in note
    figures = {one["id"]: one["graph_object"] for one in found["plotly_graph_objects"]}
    assert set(figures) == {
        "training-loss", "validation-loss", "training-accuracy", "validation-accuracy", "rung-survival"
    }  # fmt: skip
    for text in figures.values():
        assert plotly.io.from_json(text, skip_invalid=False).data
    with create(settings.storage_url) as database:  # nothing was written
        attributes = optuna.load_study(study_name="made-up", storage=database.storage)._storage.get_study_system_attrs(
            1
        )
        assert not [key for key in attributes if key.startswith("dashboard:")]


def test_a_persons_note_stays(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "mine", 2, 2)
        optuna.create_study(storage=database.storage, study_name="foreign")
    asker = client(settings, local(allow_write=True))
    same = {"Host": HOST, "Origin": f"http://{HOST}"}
    shown = asker.get("/api/studies/1", headers=same).json["note"]
    assert "Question" in shown["body"]
    saved = asker.put("/api/studies/1/note", headers=same, json={"body": "Mine.", "version": shown["version"] + 1})
    assert saved.status_code == 204
    assert asker.get("/api/studies/1", headers=same).json["note"]["body"] == "Mine."
    foreign = asker.get("/api/studies/2", headers=same).json
    assert json.dumps(foreign["note"]["body"]) == '""'
    assert foreign["plotly_graph_objects"] == []
