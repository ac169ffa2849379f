"""From the search to the report, as commands in an empty folder; and what they refuse, in one line."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpsearch.cli.tables import print_table
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study
from tests.chain import SMALL
from tests.cli import running
from tests.cli.inside import hpsearch, one_line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search."""
    place = tmp_path_factory.mktemp("evidence")
    (place / "small.toml").write_text(SMALL)
    hpsearch(place, "create-study", "small.toml")
    hpsearch(place, "worker", "small")
    return place


def test_the_whole_chain(folder: Path) -> None:
    assert "--top" in one_line(folder, "confirm", "small", "--top", "0")
    assert "2<=x<=1000" in one_line(folder, "confirm", "small", "--seeds", "1001")
    assert "confirm small" in one_line(folder, "final-test", "small")
    created = hpsearch(folder, "confirm", "small", "--top", "2", "--seeds", "3").stdout
    assert "next: hpsearch worker small-confirm" in created
    assert "not finished" in one_line(folder, "export", "small", "-o", "out")
    assert "these are not changed" in one_line(folder, "confirm", "small", "--seeds", "5")
    hpsearch(folder, "worker", "small-confirm")
    best = hpsearch(folder, "best", "small-confirm").stdout
    assert "candidate" in best
    assert "importances" not in best
    assert "seed" in hpsearch(folder, "trials", "small-confirm").stdout
    assert "count nowhere" in one_line(folder, "extend", "small-confirm", "--trials", "1")
    shown = hpsearch(folder, "confirm", "small").stdout
    assert "cannot be told from the best" in shown
    assert "was luck" in shown
    assert "±" in shown
    assert "?" in running.hpsearch(folder, "confirm", "small", PYTHONIOENCODING="ascii").stdout  # which lacks the sign
    found = json.loads(hpsearch(folder, "confirm", "small", "--json").stdout)
    assert found["finished"]
    assert len(found["standings"]) in (3, 4)
    assert f"best of {len(found['standings'])} on these seeds; its mean is somewhat optimistic" in shown

    assert "has not been opened" in one_line(folder, "final-test", "small", "--show")
    tested = json.loads(hpsearch(folder, "final-test", "small", "--json").stdout)
    assert len(tested["result"]["seeds"]) == 3
    assert "--again REASON" in one_line(folder, "final-test", "small")
    assert "is empty" in one_line(folder, "final-test", "small", "--again", " ")
    assert "leave out one" in one_line(folder, "final-test", "small", "--show", "--again", "x")
    assert "because: a reviewer asked" in hpsearch(folder, "final-test", "small", "--again", "a reviewer asked").stdout
    assert hpsearch(folder, "final-test", "small", "--show").stdout.count("test split of digits:0-4") == 2

    assert "next: hpsearch verify out" in hpsearch(folder, "export", "small", "-o", "out").stdout
    checked = hpsearch(folder, "verify", "out").stdout
    assert checked.count("ok ") == 7
    assert checked.endswith("only the storage can show them\n")
    card = (folder / "out" / "README.md").read_text()
    assert "opened 2 times; this is the first" in card

    arguments = ("transfer", "out", "--data", "digits:5-9", "--seeds", "2", "--epochs", "1")
    assert "next: hpsearch worker lenet-to-digits-5-9-16" in hpsearch(folder, *arguments).stdout
    hpsearch(folder, "worker", "lenet-to-digits-5-9-16")
    assert "lead over scratch" in hpsearch(folder, *arguments).stdout
    arms = json.loads(hpsearch(folder, *arguments, "--json").stdout)["arms"]
    assert [len(arm["values"]) for arm in arms] == [2, 2, 2, 2]
    assert "is not changed" in one_line(folder, *arguments[:-1], "2")
    assert "next: hpsearch final-test lenet-to-digits-5-9-16\n" in hpsearch(folder, *arguments[:4]).stdout
    hpsearch(folder, "final-test", "lenet-to-digits-5-9-16")
    assert "next: hpsearch final-test lenet-to-digits-5-9-16 --show\n" in hpsearch(folder, *arguments[:4]).stdout

    larger = (*arguments, "--image-size", "24")
    assert "next: hpsearch worker lenet-to-digits-5-9-24" in hpsearch(folder, *larger).stdout
    with connect(f"sqlite:///{folder / 'storage' / 'hpsearch.db'}") as database:
        study = load_study(database, "lenet-to-digits-5-9-24").optuna_study
        for number in range(8):
            state, value = (TrialState.FAIL, None) if number == 3 else (TrialState.COMPLETE, 0.5)
            study.add_trial(create_trial(state=state, value=value))
    assert "next: hpsearch final-test lenet-to-digits-5-9-24" in hpsearch(folder, *larger).stdout

    written = hpsearch(folder, "report", "small", "small-confirm", "lenet-to-digits-5-9-16", "-o", "page.html").stdout
    assert "figures about small, small-confirm" in written
    assert (folder / "page.html").stat().st_size > 1e6


def test_a_study_that_begins_with_an_export(folder: Path, tmp_path: Path) -> None:
    hpsearch(tmp_path, "create-study", str(folder / "small.toml"), "--set", "budget.trials=2")
    hpsearch(tmp_path, "worker", "small")
    hpsearch(tmp_path, "export", "small", "-o", "out")
    changes = ["--set", "training.start=export", "--set", "model.export=out", "--study-name", "next"]
    hpsearch(tmp_path, "create-study", str(folder / "small.toml"), *changes, "--set", "budget.trials=1")
    hpsearch(tmp_path, "worker", "next")
    (trial,) = json.loads(hpsearch(tmp_path, "trials", "next", "--json").stdout)
    assert trial["recipe"]["start"] == "export"
    wrong = ["--set", "training.start=export", "--set", "model.export=absent", "--study-name", "other"]
    assert "absent" in one_line(tmp_path, "create-study", str(folder / "small.toml"), *wrong)
    (tmp_path / "out" / "model.safetensors").write_bytes(b"changed")
    assert "SHA-256" in one_line(tmp_path, "verify", "out")
    assert "SHA-256" in one_line(tmp_path, "transfer", "out", "--data", "digits:5-9")
    assert [study["study"] for study in json.loads(hpsearch(tmp_path, "list", "--json").stdout)["studies"]] == [
        "small",
        "next",
    ]


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    for command in (
        ("confirm", "x"),
        ("final-test", "x"),
        ("export", "x", "-o", "out"),
        ("report", "x", "-o", "p.html"),
    ):
        assert "create-study" in one_line(tmp_path, *command)
    assert "no such folder" in one_line(tmp_path, "verify", "absent")
    assert "no such folder" in one_line(tmp_path, "transfer", "absent", "--data", "digits:5-9")
    assert list(tmp_path.iterdir()) == []


def test_a_confirmation_of_which_every_candidate_failed(folder: Path, tmp_path: Path) -> None:
    hpsearch(tmp_path, "create-study", str(folder / "small.toml"), "--set", "budget.trials=2")
    hpsearch(tmp_path, "worker", "small", "--max-trials", "1")
    said = hpsearch(tmp_path, "confirm", "small", "--top", "1", "--seeds", "2").stderr
    assert said == "study small: 1 of its 2 trials have ended; what the others find is not confirmed\n"
    with connect(f"sqlite:///{tmp_path / 'storage' / 'hpsearch.db'}") as database:
        confirmation = load_study(database, "small-confirm")
        for _ in range(2 * len(confirmation.spec.candidates)):
            confirmation.optuna_study.add_trial(create_trial(state=TrialState.FAIL))
    said = hpsearch(tmp_path, "confirm", "small").stdout
    assert "no candidate is left" in said
    assert "next:" not in said
    for command in (("final-test", "small"), ("export", "small", "-o", "out")):
        assert "hpsearch trials small-confirm" in one_line(tmp_path, *command)


def test_folders_that_the_system_refuses(folder: Path) -> None:
    name = "x" * 300
    assert "File name too long" in one_line(folder, "export", "small", "-o", name)
    assert "no such folder" in one_line(folder, "verify", name)
    assert "no such folder" in one_line(folder, "transfer", name, "--data", "digits:5-9")


def test_labels_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["candidate [b]", ""], [["wide [adam] [/b]", ":car:"]])
    said = capsys.readouterr().out
    for text in ("candidate [b]", "wide [adam] [/b]", ":car:"):
        assert text in said
