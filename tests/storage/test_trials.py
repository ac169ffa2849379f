"""Trials read in bulk are those that Optuna reads, whatever is in them and whichever are asked for."""

import math
from collections.abc import Iterator

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from hpsearch.storage import snapshot
from hpsearch.storage.open import Database, create
from hpsearch.storage.trials import BulkStorage

KINDS = {
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(1, 9, step=2),
    "optimizer": CategoricalDistribution(("sgd", None, 3, True)),
}
PARAMS = {"rate": 0.01, "layers": 5, "optimizer": None}


class Both:
    """One database, read by Optuna's storage and by ours."""

    def __init__(self, database: Database, url: str) -> None:
        self.database, self.ours = database, database.storage._backend  # type: ignore[attr-defined]
        assert isinstance(self.ours, BulkStorage)
        self.optunas = RDBStorage(url, engine_kwargs={"poolclass": NullPool}, skip_table_creation=True)
        self.study = optuna.create_study(study_name="many", storage=database.storage)
        fill(self.study)
        self.id = self.study._study_id
        self.ids = [trial._trial_id for trial in self.optunas.get_all_trials(self.id, deepcopy=False)]

    def same(
        self, included: set[int], after: int, states: tuple[TrialState, ...] | None = None, study: int | None = None
    ) -> list[int]:
        """The ids that both give; their trials are equal, to the order of their parameters."""
        wanted = (self.id if study is None else study, states, included, after)
        ours, theirs = (storage._get_trials(*wanted) for storage in (self.ours, self.optunas))
        assert text(ours) == text(theirs)
        return [trial._trial_id for trial in ours]


def text(trials: list[FrozenTrial]) -> list[str]:
    """What compares as equal: NaN does not equal itself, and only parameters have an order."""
    for trial in trials:
        trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
        trial.user_attrs = dict(sorted(trial.user_attrs.items()))
        trial.system_attrs = dict(sorted(trial.system_attrs.items()))
    return list(map(repr, trials))


@pytest.fixture
def both(storage_url: str) -> Iterator[Both]:
    """On SQLite and on PostgreSQL, with another study beside it."""
    with create(storage_url) as database:
        other = optuna.create_study(study_name="two objectives", storage=database.storage, directions=["minimize"] * 2)
        other.add_trial(create_trial(values=[2.0, math.inf], params=PARAMS, distributions=KINDS))
        yield Both(database, storage_url)


def fill(study: optuna.Study) -> None:
    """Trials of every state, with values of every kind."""
    every = {4: 0.5, 1: math.nan, 2: math.inf, 3: -math.inf}
    notes = {"text": 'a "quoted" ü', "list": [1, {"a": None}]}
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        value = None if state == TrialState.FAIL else -math.inf
        for values in ({}, every):
            study.add_trial(
                create_trial(
                    state=state,
                    value=value,
                    params=PARAMS,
                    distributions=KINDS,
                    user_attrs=notes,
                    system_attrs=notes,
                    intermediate_values=values,
                )
            )
    study.add_trial(create_trial(value=1.0))
    study.enqueue_trial({"rate": 0.02}, user_attrs={"why": "first"})
    running = study.ask({"rate": KINDS["rate"]})
    running.report(0.1, 0)
    study.ask()
    study.enqueue_trial({"rate": 0.03})


def test_every_trial(both: Both) -> None:
    assert both.same(set(), -1) == both.ids
    states = {trial.state for trial in both.study.get_trials()}
    assert states == set(TrialState)
    other = optuna.load_study(study_name="two objectives", storage=both.database.storage)
    assert both.same(set(), -1, study=other._study_id) == [other.trials[0]._trial_id]
    assert other.trials[0].values == [2.0, math.inf]


def test_the_trials_that_are_asked_for(both: Both) -> None:
    ids = both.ids
    assert both.same(set(), ids[4]) == ids[5:]
    assert both.same({ids[1], ids[3], ids[6]}, ids[4]) == [ids[1], ids[3], *ids[5:]]
    assert both.same({10**6}, ids[-1]) == []
    assert both.same(set(), -1, (TrialState.WAITING, TrialState.RUNNING)) == ids[7:]


def test_more_ids_than_a_statement_takes(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_IDS", 2)
    assert both.same(set(both.ids[:3]), both.ids[5]) == [*both.ids[:3], *both.ids[6:]]


def test_a_study_that_is_not_there(both: Both) -> None:
    for storage in (both.ours, both.optunas):
        with pytest.raises(KeyError, match="does not exist"):
            storage.get_all_trials(99)


def test_what_others_have_changed_is_seen(both: Both) -> None:
    both.study.get_trials()  # what has ended is kept
    (first, *_) = [trial for trial in both.study.get_trials() if trial.state == TrialState.RUNNING]
    other = optuna.load_study(study_name="many", storage=both.optunas)
    other.tell(first.number, 0.25)
    other.add_trial(create_trial(value=3.0, user_attrs={"new": True}))
    assert text(both.study.get_trials()) == text(other.get_trials())
