"""The race in a study: a function of what is recorded, whoever trains."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.interrupt import Interruption
from hpsearch.search.pruners import failing, make_pruner
from hpsearch.search.racing import standing, values
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.worker import run
from tests.studies import CANDIDATES

SPEC = parse(CANDIDATES, "three.toml")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        yield database


def settings(tmp_path: Path) -> Settings:
    return Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")


def finished(number: int, value: float | None, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    return replace_number(optuna.trial.create_trial(state=state, value=value), number)


def replace_number(trial: FrozenTrial, number: int) -> FrozenTrial:
    trial.number = number
    return trial


def test_trials_are_all_candidates_with_one_seed_and_then_the_next() -> None:
    assert [SPEC.place(number) for number in range(4)] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert SPEC.budget.trials == 15


def test_the_order_of_trials_changes_nothing() -> None:
    generator = random.Random(0)
    trials = [finished(n, [0.9, 0.89, 0.2][n % 3] + generator.gauss(0, 0.01)) for n in range(15)]
    expected = standing(SPEC, trials)
    assert set(expected.out) == {2}
    for _ in range(5):
        generator.shuffle(trials)
        assert standing(SPEC, trials) == expected


def test_one_race_decides_on_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    races: list[object] = []
    monkeypatch.setattr("hpsearch.search.racing.standing", lambda *given: races.append(given) or standing(*given))
    study, generator = optuna.create_study(direction="maximize"), random.Random(0)
    for number in range(12):
        study.add_trial(optuna.trial.create_trial(value=[0.9, 0.89, 0.2][number % 3] + generator.gauss(0, 0.01)))
    lanes = [study.ask().number for _ in range(3)]
    assert failing(make_pruner(SPEC), study, study.get_trials()[-3:]) == {lanes[2]}
    assert len(races) == 1


def test_what_never_gets_a_value_is_no_value() -> None:
    trials = [
        finished(0, 0.9),
        finished(1, None, TrialState.FAIL),
        finished(2, 0.4, TrialState.PRUNED),
        replace_number(optuna.trial.create_trial(state=TrialState.RUNNING), 3),
        finished(99, 0.5),
    ]
    table = values(SPEC, trials)
    assert table[0] == [0.9, None, None, None, None]
    assert str(table[1][0]) == str(table[2][0]) == "nan"
    assert standing(SPEC, trials).out.keys() == {1, 2}


def test_losers_of_a_real_study_are_not_trained_to_the_end(database: Database, tmp_path: Path) -> None:
    create_study(database, SPEC, "three")
    list(run(database, "three", settings(tmp_path), Interruption()))
    trials = load_study(database, "three").optuna_study.trials
    assert len(trials) == 15  # exact budget
    recipes = [trial.user_attrs[RECIPE_KEY] for trial in trials]
    assert [recipe["seed"] for recipe in recipes] == [number // 3 for number in range(15)]
    assert [recipe["learning_rate"] for recipe in recipes[:3]] == [0.05, 0.04, 1e-9]
    for number in range(0, 15, 3):  # paired: the same data order and augmentation for each
        assert len({recipe["stream_seed"] for recipe in recipes[number : number + 3]}) == 1
    stuck = trials[2::3]
    assert [trial.state for trial in stuck[:3]] == [TrialState.COMPLETE] * 3
    ended = [trial for trial in stuck if trial.state == TrialState.PRUNED]
    assert ended
    for trial in ended:
        assert not trial.intermediate_values  # not even begun
        assert trial.user_attrs[REASON_KEY] == "pruned by race"
    assert {trial.state for trial in [*trials[0::3], *trials[1::3]]} == {TrialState.COMPLETE}
    assert standing(SPEC, trials).leader in (0, 1)


def test_two_workers_by_turns_come_to_the_same_end(tmp_path: Path) -> None:
    """Trials of two workers interleave; results and decisions are those of one worker alone."""
    found = []
    for turns in ([15], [4, 1, 2, 8]):
        with create(f"sqlite:///{tmp_path / str(len(turns))}.db") as database:
            create_study(database, SPEC, "three")
            for num in turns:
                list(run(database, "three", settings(tmp_path), Interruption(), num))
            trials = load_study(database, "three").optuna_study.trials
            found.append((standing(SPEC, trials), [(trial.state, trial.value) for trial in trials]))
    assert found[0] == found[1]


def test_candidates_see_the_same_images_in_the_same_order_also_where_lanes_are_refilled(
    database: Database, tmp_path: Path
) -> None:
    """The third one begins while the first one trains; it does not join it in the midst of its images."""
    text = CANDIDATES.replace("seeds = 5", "seeds = 1").replace('name = "race"', 'name = "none"')
    text = text.replace("learning_rate = 0.05", "learning_rate = 0.05\nepochs = 5").replace(
        "batch_size = 32", "epochs = 1"
    )
    create_study(database, parse(text, "three.toml"), "three")
    list(run(database, "three", replace(settings(tmp_path), lanes=2), Interruption()))
    recipes = [trial.user_attrs[RECIPE_KEY] for trial in load_study(database, "three").optuna_study.trials]
    assert [recipe["epochs"] for recipe in recipes] == [5, 1, 2]
    assert {(recipe["stream_seed"], recipe["stream_offset"]) for recipe in recipes} == {(recipes[0]["stream_seed"], 0)}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seeds = 5\n", "seeds = 5\n[space]\nmomentum = { low = 0.1, high = 0.9 }\n", "candidate"),
        ('label = "good"\n', "", "candidate[1].label"),
        ('label = "as good"', 'label = "good"', "more than once"),
        ("batch_size = 32", "batch_sise = 32", "batch_sise"),
        ("batch_size = 32", "batch_size = 0", "candidate[2].batch_size"),
        ("batch_size = 32", 'scheduler = "onecycle"', "peak_learning_rate"),
        ("batch_size = 32", 'start = "exprot"', "candidate[2].start"),
        ("batch_size = 32", 'precision = "half"', "candidate[2].precision"),
        ("batch_size = 32", 'start = "export"', "model.export"),
        ("batch_size = 32", "frozen_layers = -1", "frozen_layers"),
    ],
)
def test_mistakes_in_candidates(old: str, new: str, named: str) -> None:
    from hpsearch.errors import StudyFileError

    assert old in CANDIDATES
    with pytest.raises(StudyFileError, match=r".*") as error:
        parse(CANDIDATES.replace(old, new, 1), "three.toml")
    assert named in str(error.value)


def test_a_race_needs_candidates() -> None:
    from hpsearch.errors import StudyFileError

    with pytest.raises(StudyFileError, match="a race is between"):
        parse(CANDIDATES.partition("[[candidate]]")[0], "none.toml")


def test_candidates_survive_the_database() -> None:
    from hpsearch.spec import StudySpec

    assert StudySpec.from_json(SPEC.to_json()) == SPEC
    assert replace(SPEC, candidates=()) != SPEC
