"""fsck on what workers train: candidates over seeds, a trial that goes on after a repair, one that has just ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import delete, insert, select, update

from hpsearch.artifacts import FolderCheckpoints, trial_number
from hpsearch.events import EpochDone
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.fsck import Report, run
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.storage.tables import CONFIGURATIONS, EPOCHS, PARAMS, USER_ATTRIBUTES
from hpsearch.worker import Limits, serve
from tests.studies import CANDIDATES, TINY, quick

OF_CANDIDATE_1 = 4  # a trial's number: its second seed
LONGER = CANDIDATES.replace("batch_size = 32", "batch_size = 32\nepochs = 3")


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    """On SQLite and on PostgreSQL."""
    with create(storage_url) as database:
        yield database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings under which every epoch is kept."""
    return Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu", checkpoint_seconds=0.0)


def train(database: Database, text: str, settings: Settings) -> None:
    """A study `one` that one worker has trained to its end."""
    create_study(database, parse(text, "one.toml"), "one")
    list(serve(database, "one", settings, Interruption(), Limits()))


def fsck(database: Database, settings: Settings, *, mend: bool = False) -> Report:
    """Run it on the study `one`."""
    return run(database, load_study(database, "one"), settings.checkpoints, mend=mend)


def configurations(database: Database) -> dict[str, int]:
    """What is taken up, and for which trial."""
    with database.engine.connect() as connection:
        rows = connection.execute(select(CONFIGURATIONS.c.digest, CONFIGURATIONS.c.trial_id))
        return {digest: trial_id for digest, trial_id in rows}  # noqa: C416 -- a Row is no pair to dict()


@pytest.mark.parametrize("text", [CANDIDATES, LONGER], ids=["alike", "other epochs"])
def test_candidates_over_seeds_have_no_finding(database: Database, settings: Settings, text: str) -> None:
    train(database, text, settings)
    taken_up, trials = configurations(database), load_study(database, "one").optuna_study.trials
    assert len(taken_up) == len(trials) == 15
    assert fsck(database, settings) == Report(15, (), ())
    assert fsck(database, settings, mend=True) == Report(15, (), ())
    assert configurations(database) == taken_up
    assert load_study(database, "one").optuna_study.trials == trials


@pytest.mark.parametrize("damage", ["no recipe", "another recipe", "not taken up", "a parameter"])
def test_damage_to_a_candidates_trial_is_mended(database: Database, settings: Settings, damage: str) -> None:
    train(database, LONGER, settings)
    taken_up, trials = configurations(database), load_study(database, "one").optuna_study.trials
    trial_id = trials[OF_CANDIDATE_1]._trial_id
    of_it = (USER_ATTRIBUTES.c.trial_id == trial_id) & (USER_ATTRIBUTES.c.key == RECIPE_KEY)
    with database.engine.begin() as connection:
        if damage == "no recipe":
            connection.execute(delete(USER_ATTRIBUTES).where(of_it))
        elif damage == "another recipe":
            text = connection.scalars(select(USER_ATTRIBUTES.c.value_json).where(of_it)).one()
            wrong = text.replace('"batch_size": 32', '"batch_size": 64')
            connection.execute(update(USER_ATTRIBUTES).where(of_it).values(value_json=wrong))
        elif damage == "not taken up":
            connection.execute(delete(CONFIGURATIONS).where(CONFIGURATIONS.c.trial_id == trial_id))
        else:
            row = {"trial_id": trial_id, "param_name": "momentum", "param_value": 0.5, "distribution_json": "x"}
            connection.execute(insert(PARAMS).values(row))
    assert {finding.trial for finding in fsck(database, settings).left} == {OF_CANDIDATE_1}
    report = fsck(database, settings, mend=True)
    assert [finding.trial for finding in report.repaired] == [OF_CANDIDATE_1]
    assert report.left == ()
    assert configurations(database) == taken_up
    database.storage._finished_trials = None  # type: ignore[attr-defined]
    assert load_study(database, "one").optuna_study.trials == trials


@pytest.mark.parametrize("metric", ["validation_accuracy", "validation_loss"])
def test_a_trial_goes_on_from_an_epoch_that_was_restored(database: Database, settings: Settings, metric: str) -> None:
    """Of epoch 3 the objective alone is left; that the other metrics are missing does not mean that it diverged."""
    text = f'{quick("one", 1, 6)}[objective]\nmetric = "{metric}"\n'
    create_study(database, parse(text, "one.toml"), "one")
    give_back(database, settings, after=3)
    with database.engine.begin() as connection:
        assert connection.execute(delete(EPOCHS).where(EPOCHS.c.epoch == 3)).rowcount == 1
    assert [finding.kind for finding in fsck(database, settings, mend=True).repaired] == ["curve"]
    events = list(serve(database, "one", settings, Interruption(), Limits()))
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [4, 5, 6]
    [trial] = load_study(database, "one").optuna_study.trials
    assert (trial.state, list(trial.intermediate_values)) == (TrialState.COMPLETE, [1, 2, 3, 4, 5, 6])
    assert fsck(database, settings) == Report(1, (), ())


def give_back(database: Database, settings: Settings, after: int) -> None:
    """A worker trains the study's trial, and is asked to stop after an epoch."""
    interruption = Interruption()
    for event in serve(database, "one", settings, interruption, Limits()):
        if isinstance(event, EpochDone) and event.epoch == after:
            interruption.requested = True
    [trial] = load_study(database, "one").optuna_study.trials
    assert (trial.state, list(trial.intermediate_values)) == (TrialState.WAITING, list(range(1, after + 1)))


def test_a_healthy_worker_is_no_damage(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of a trial are there for a moment after its end is recorded."""
    forget, seen = FolderCheckpoints.forget, []

    def observed(place: FolderCheckpoints, key: str) -> None:
        seen.append((trial_number(key), fsck(database, settings)))
        forget(place, key)

    monkeypatch.setattr(FolderCheckpoints, "forget", observed)
    train(database, TINY, settings)
    assert all(report.ok for _, report in seen)
    left_over = {number for number, report in seen if number in [finding.trial for finding in report.left]}
    assert left_over  # of those that ended with their first epoch there are none
    assert fsck(database, settings) == Report(6, (), ())
