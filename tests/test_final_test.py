"""The final test: what it says is right, and it is recorded, once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score
from sqlalchemy.exc import OperationalError

from hpsearch import final_test as testing
from hpsearch.cli.final_test import final_test as command
from hpsearch.data.images import Source
from hpsearch.errors import DataError, HpsearchError, StorageError, UsageError
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.report.gather import gather
from hpsearch.report.page import study_figures
from hpsearch.scores import BINS, coarse, scores, summed
from hpsearch.sealed.images import SealedImages, open_seal
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, openings
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.trained import choose, dataset_of, network
from hpsearch.worker import run
from tests.chain import SMALL, Chain, make, silent


def random_predictions(num: int = 400, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1, (num, classes))
    labels = generator.integers(0, classes, num)
    logits[np.arange(num), labels] += 1.0
    found = np.exp(logits)
    return found / found.sum(1, keepdims=True), labels


def test_scores_are_scikit_learns() -> None:
    probabilities, labels = random_predictions()
    found, predicted = scores(probabilities, labels), probabilities.argmax(1)
    assert found.accuracy == pytest.approx((predicted == labels).mean())
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    np.testing.assert_allclose(found.recall, recall_score(labels, predicted, average=None))
    np.testing.assert_allclose(found.precision, precision_score(labels, predicted, average=None))
    assert found.log_loss == pytest.approx(log_loss(labels, probabilities))
    assert np.sum(found.confusion) == len(labels)
    assert found.confusion[2][3] == np.sum((labels == 2) & (predicted == 3))


def test_calibration_error_by_its_definition() -> None:
    probabilities, labels = random_predictions()
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(BINS):
        inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - hits[inside].mean())
    assert scores(probabilities, labels).calibration_error == pytest.approx(expected)


def test_a_perfectly_calibrated_coin_has_no_error() -> None:
    probabilities = np.full((1000, 2), 0.5)
    probabilities[:, 0] += 1e-9
    labels = np.repeat([0, 1], 500)
    assert scores(probabilities, labels).calibration_error == pytest.approx(0.0, abs=1e-6)


def test_superclasses_forgive_what_stays_inside() -> None:
    probabilities = np.eye(4)[[1, 0, 3, 0]]
    labels = np.array([0, 1, 2, 3])
    accuracy, confusion = coarse(probabilities, labels, np.array([0, 0, 1, 1]))
    assert accuracy == 0.75
    assert confusion == ((2, 0), (1, 1))
    assert summed([confusion, confusion]) == ((4, 0), (2, 2))


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("tested")
    with create(f"sqlite:///{folder / 'study.db'}") as database:
        made = make(database, folder)
        yield made, final_test(database, made.search, made.settings, None, silent)


def test_it_says_what_the_winner_does_on_the_test_images(tested: tuple[Chain, dict]) -> None:
    chain, record = tested
    winner = choose(chain.database, chain.search)[0]
    assert record["result"]["label"] == winner.label
    dataset = dataset_of(winner.study.spec, chain.settings)
    sealed = open_seal(Source("digits:0-4", "0-4", None, chain.settings.home, 16), dataset.classes)
    mean, std = torch.tensor(dataset.mean)[:, None, None], torch.tensor(dataset.std)[:, None, None]
    images = (torch.from_numpy(sealed.images) / 255 - mean) / std
    own = []
    for trial in winner.trials:
        model = network(winner.study, trial, dataset, chain.settings, silent).model
        with torch.inference_mode():
            own.append((model(images).argmax(1).numpy() == sealed.labels).mean())
    assert record["result"]["accuracy"]["values"] == pytest.approx(own)
    assert record["result"]["accuracy"]["mean"] == pytest.approx(np.mean(own))
    assert record["num_images"] == len(sealed.labels)
    assert np.sum(record["result"]["confusion"]) == 3 * len(sealed.labels)
    assert len(record["result"]["seeds"]) == 3


def test_it_is_recorded_and_a_second_look_needs_a_reason(tested: tuple[Chain, dict]) -> None:
    chain, record = tested
    assert openings.openings(chain.database, chain.search)[0] == json.loads(json.dumps(record))
    with pytest.raises(UsageError, match="opened on"):
        final_test(chain.database, chain.search, chain.settings, None, silent)
    assert len(openings.openings(chain.database, chain.search)) == 1
    final_test(chain.database, chain.search, chain.settings, "a reviewer asked", silent)
    records = openings.openings(chain.database, chain.search)
    assert [one["again"] for one in records] == [None, "a reviewer asked"]
    assert records[0]["result"] == records[1]["result"]
    assert records[0]["time"] <= records[1]["time"]
    assert records[0]["test_fingerprint"] == records[1]["test_fingerprint"]
    assert [one["other_images"] for one in records] == [None, None]


def test_of_two_who_open_at_once_one_is_refused(storage_url: str) -> None:
    with create(storage_url) as database:
        create_study(database, parse(SMALL, "small.toml"), "small")
        study = load_study(database, "small")
        openings.begin(database, study, 0, {"time": "now"})
        with pytest.raises(StorageError, match="by somebody else"):
            openings.begin(database, study, 0, {"time": "now"})
        openings.begin(database, study, 1, {"time": "later"})
        openings.complete(database, study, 1, {"time": "later", "results": []})
        assert openings.openings(database, study) == [{"time": "now"}, {"time": "later", "results": []}]
        openings.withdraw(database, study, 0)
        assert openings.openings(database, study) == [{"time": "later", "results": []}]


def test_without_kept_weights_the_winner_trains_again_to_the_same(tested: tuple[Chain, dict], tmp_path: Path) -> None:
    chain, _ = tested
    said: list[str] = []
    winner = choose(chain.database, chain.search)[0]
    dataset = dataset_of(winner.study.spec, chain.settings)
    elsewhere = replace(chain.settings, home=tmp_path)
    kept, again = (
        network(winner.study, winner.middle, dataset, settings, said.append).model
        for settings in (chain.settings, elsewhere)
    )
    assert len(said) == 1
    assert "trains once more" in said[0]
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_nothing_is_opened_for_an_unconfirmed_search(tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(SMALL, "small.toml"), "small")
        bare = Chain(database, make_settings(tmp_path))
        bare.work("small")
        with pytest.raises(UsageError, match="not confirmed"):
            final_test(database, bare.search, bare.settings, None, silent)
        from hpsearch import confirm

        confirm.create(database, bare.search, 2, 2)
        with pytest.raises(UsageError, match="not finished"):
            final_test(database, bare.search, bare.settings, None, silent)
        assert openings.openings(database, bare.search) == []


def test_a_test_split_that_cannot_be_read_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        text = SMALL.partition("[space]")[0].replace('name = "small"', 'name = "plain"\nseeds = 2')
        create_study(database, parse(text, "plain.toml"), "plain")
        plain = Chain(database, make_settings(tmp_path))
        plain.work("plain")
        study = load_study(database, "plain")

        def broken(*_: object) -> None:
            raise DataError("digits: the test split is damaged")

        with monkeypatch.context() as patched:
            patched.setattr("hpsearch.final_test.open_seal", broken)
            with pytest.raises(DataError, match="damaged"):
                final_test(database, study, plain.settings, None, silent)
        assert openings.openings(database, study) == []
        record = final_test(
            database, study, plain.settings, None, silent
        )  # a study of one recipe needs no confirmation
        assert len(record["result"]["seeds"]) == 2


def test_the_study_that_confirms_has_no_seal_of_its_own(tested: tuple[Chain, dict]) -> None:
    """Else the winner's test images would be read twice without a reason."""
    chain, _ = tested
    with pytest.raises(UsageError, match="hpsearch final-test small`"):
        final_test(chain.database, chain.confirmation, chain.settings, None, silent)
    assert openings.openings(chain.database, chain.confirmation) == []


def plain(database: Database, home: Path, num_seeds: int) -> Chain:
    text = SMALL.partition("[space]")[0].replace('name = "small"', f'name = "plain"\nseeds = {num_seeds}')
    create_study(database, parse(text.replace("epochs = 3", "epochs = 1"), "plain.toml"), "plain")
    return Chain(database, make_settings(home))


def test_what_was_opened_is_shown_for_both_studies(tested: tuple[Chain, dict]) -> None:
    """Of the search, and of the one that confirms it."""
    chain, record = tested
    for name in ("small", "small-confirm"):
        done = CliRunner().invoke(command, [name, "--show", "--storage", str(chain.database.engine.url)])
        assert f"opened {record['time']}" in done.output


def test_a_study_over_seeds_is_tested_when_it_has_ended(sqlite: Database, tmp_path: Path) -> None:
    made = plain(sqlite, tmp_path, 3)
    list(run(sqlite, "plain", made.settings, Interruption(), 2))
    study = load_study(sqlite, "plain")
    for state in (budget.RUNNING, budget.PAUSED):
        fleet.control(sqlite, study.study_id, state)
        with pytest.raises(UsageError, match="2 of its 3 trials have ended"):
            final_test(sqlite, study, made.settings, None, silent)
    assert openings.openings(sqlite, study) == []
    fleet.control(sqlite, study.study_id, budget.STOPPED)  # somebody has said that these are all
    record = final_test(sqlite, study, made.settings, "a reason that nobody asked for", silent)
    assert len(record["result"]["seeds"]) == 2
    assert record["again"] is None  # it is the first


def test_a_test_split_that_was_exchanged_is_told(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plain(sqlite, tmp_path, 1)
    made.work("plain")
    study = load_study(sqlite, "plain")
    first = final_test(sqlite, study, made.settings, None, silent)

    def relabelled(source: Source, classes: tuple[str, ...]) -> SealedImages:
        there = open_seal(source, classes)
        return replace(there, labels=there.labels[[1, 0, *range(2, len(there.labels))]])

    monkeypatch.setattr("hpsearch.final_test.open_seal", relabelled)
    second = final_test(sqlite, study, made.settings, "labels were mended", silent)
    assert second["other_images"] == first["time"]
    assert second["test_fingerprint"] != first["test_fingerprint"]
    shown = [figure.caption for figure in study_figures(gather(sqlite, "plain"), made.settings)]
    assert any(f"other images than at the opening on {first['time']}" in caption for caption in shown)
    done = CliRunner().invoke(command, ["plain", "--show", "--storage", str(sqlite.engine.url)])
    assert done.output.count("other test images") == 1


def test_after_one_that_was_withdrawn_it_can_be_opened_again(sqlite: Database, tmp_path: Path) -> None:
    """Somebody's first look came to nothing while somebody else's second one went on."""
    made = plain(sqlite, tmp_path, 1)
    made.work("plain")
    study = load_study(sqlite, "plain")
    for number in (0, 1):
        openings.begin(sqlite, study, number, {"time": "earlier"})
    openings.withdraw(sqlite, study, 0)
    assert final_test(sqlite, study, made.settings, "the others are gone", silent)["again"]
    assert list(openings.numbered(sqlite, study)) == [1, 2]


def test_a_storage_that_fails_while_the_seal_is_open_is_waited_for(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plain(sqlite, tmp_path, 2)
    made.work("plain")
    study, complete, failed = load_study(sqlite, "plain"), openings.complete, []

    def twice(*arguments: Any) -> None:
        if len(failed) < 2:
            failed.append(1)
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        complete(*arguments)

    monkeypatch.setattr("hpsearch.storage.openings.complete", twice)
    monkeypatch.setattr("hpsearch.patience.STORAGE_PAUSE_SECONDS", 0.01)
    said: list[str] = []
    record = final_test(sqlite, study, made.settings, None, said.append)
    assert len(failed) == 2
    assert "the storage does not answer (database is locked); waiting for it" in said
    assert openings.openings(sqlite, study) == [json.loads(json.dumps(record))]


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_study_that_is_deleted_meanwhile_leaves_its_test_to_no_other(
    when: str, sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives its id to the next one."""
    made = plain(sqlite, tmp_path, 2)
    made.work("plain")
    study = load_study(sqlite, "plain")

    name = {"before": "network", "while": "open_seal"}[when]
    own, calls = getattr(testing, name), list[object]()

    def watched(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            optuna.delete_study(study_name="plain", storage=study.optuna_study._storage)
            create_study(sqlite, study.spec, "plain")
        return own(*arguments)

    monkeypatch.setattr(testing, name, watched)
    named = {"before": "has been deleted meanwhile", "while": r"has been deleted\), so keep this line"}[when]
    with pytest.raises(HpsearchError, match=named):
        final_test(sqlite, study, made.settings, None, silent)
    again = load_study(sqlite, "plain")
    assert again.study_id == study.study_id
    assert openings.openings(sqlite, again) == []


def test_a_storage_that_stays_away_while_the_seal_is_open_loses_no_scores(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plain(sqlite, tmp_path, 2)
    made.work("plain")
    study, shown = load_study(sqlite, "plain"), []

    def never(*arguments: Any) -> None:
        shown.append(arguments[-1]["result"])
        raise OperationalError("UPDATE", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patched:
        patched.setattr("hpsearch.storage.openings.complete", never)
        with pytest.raises(HpsearchError, match="keep this line") as error:
            final_test(sqlite, study, replace(made.settings, storage_wait_seconds=0), None, silent)
    assert "\n" not in str(error.value)
    (scored,) = json.loads(str(error.value).partition("keep this line: ")[2].rpartition("; another look")[0])
    for name in ("label", "seeds", "validation", "accuracy", "macro_f1", "log_loss"):
        assert scored[name] == json.loads(json.dumps(shown[0][name]))
    with pytest.raises(UsageError, match=r"No result was recorded; if it must be, give the reason with --again"):
        final_test(sqlite, study, made.settings, None, silent)
    final_test(sqlite, study, made.settings, "the storage failed", silent)
    with pytest.raises(UsageError, match=r"The result is recorded"):
        final_test(sqlite, study, made.settings, None, silent)


def make_settings(home: Path):  # type: ignore[no-untyped-def]
    from hpsearch.settings import Settings

    return Settings(storage_url="", home=home, data_dir=None, device="cpu")
