"""The trials that optuna-dashboard's page gets are those that it would have written itself."""

import json
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState
from werkzeug.test import Client

from benchmarks.filling import made_up
from hpsearch.settings import Settings
from hpsearch.storage.ledger import End, finish
from hpsearch.storage.open import connect, create
from hpsearch.web import ended
from hpsearch.web.ended import EndedTrials
from tests.web.serving import HOST, Opener, local, settings_for


def theirs(settings: Settings, path: str) -> Any:
    """What optuna-dashboard alone answers; None if that is not JSON."""
    with connect(settings.storage_url) as database:
        return Client(optuna_dashboard.wsgi(database.storage)).get(path).json


@pytest.mark.parametrize(
    "after", ["", "?after=0", "?after=7", "?after=39", "?after=99", "?after=-1", f"?after={'9' * 5000}", "?other=1"]
)
def test_a_study_is_sent_as_optuna_dashboard_sends_it(client: Opener, settings: Settings, after: str) -> None:
    asker, path = client(settings, local()), f"/api/studies/1{after}"
    for _ in range(2):  # the second time from what was kept
        answer = asker.get(path, headers={"Host": HOST})
        expected = theirs(settings, path)
        additions = {"note", "plotly_graph_objects"}  # see test_notes.py
        ours = {key: value for key, value in answer.json.items() if key not in additions}
        assert ours == {key: value for key, value in expected.items() if key not in additions}
        assert int(answer.headers["Content-Length"]) == len(answer.data)


def test_a_study_that_is_not_there(client: Opener, settings: Settings) -> None:
    assert client(settings, local()).get("/api/studies/99", headers={"Host": HOST}).status_code == 404


def test_running_trials_and_notes_are_written_anew(tmp_path: Path) -> None:
    with create(settings_for(tmp_path).storage_url) as database:
        filled = made_up(database, "s", 4, 6, prune=False)
        running = filled.fill(4, leave_running=1)
        kept = EndedTrials(database.storage)

        def shown() -> list[dict[str, Any]]:
            return list(json.loads(kept.trials(1, 0)))

        assert [trial["state"] for trial in shown()] == ["Complete", "Complete", "Complete", "Running"]
        filled.report(running, 4)
        assert len(shown()[3]["intermediate_values"]) == 4
        finish(database, [End(running[0][0], TrialState.COMPLETE, 0.5)])
        assert shown()[3]["values"] == [0.5]
        study = optuna.load_study(study_name="s", storage=database.storage)
        optuna_dashboard.save_note(optuna.Trial(study, 2), "a note")
        assert [trial["note"]["body"] for trial in shown()] == ["", "a note", "", ""]


def test_few_studies_are_kept(tmp_path: Path) -> None:
    with create(settings_for(tmp_path).storage_url) as database:
        for index in range(4):
            made_up(database, f"s{index}", 2, 1, prune=False).fill(2)
        kept = EndedTrials(database.storage)
        for study_id in (1, 2, 3, 4, 2):
            assert len(json.loads(kept.trials(study_id, 0))) == 2
        assert list(kept._kept) == [4, 2]
        assert len(kept._kept) == ended.MAX_STUDIES
        with pytest.raises(KeyError):
            kept.trials(99, 0)
