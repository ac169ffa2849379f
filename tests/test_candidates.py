"""Comparisons over seeds: what may be compared, and that seeds stay a fair sample."""

import json

import pytest

from hpsearch import spec
from hpsearch.errors import StudyFileError
from hpsearch.spec import StudySpec

STUDY = """
name = "two"
seeds = 3
[model]
name = "lenet"
[data]
name = "digits"
[training]
{fixed}
[[candidate]]
label = "one"
{one}
[[candidate]]
label = "other"
{other}
"""
ALONE = STUDY.partition("[[candidate]]")[0].format(fixed="epochs = 4")


def parse(fixed: str, one: str, other: str) -> StudySpec:
    return spec.parse(STUDY.format(fixed=fixed, one=one, other=other), "two.toml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        spec.parse(text, "two.toml")
    return [mistake.removeprefix("two.toml: ") for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("fixed", "one", "other"),
    [
        ("epochs = 2\nscheduler = 'onecycle'", "peak_learning_rate = 0.1", "peak_learning_rate = 0.2"),
        ("epochs = 2\npeak_learning_rate = 0.1", "scheduler = 'onecycle'", ""),
        ("epochs = 2\npeak_learning_rate = 0.1", "scheduler = 'onecycle'", "learning_rate = 0.5"),
        ("epochs = 2\ngamma = 0.9", "scheduler = 'exponential'", ""),
        ("epochs = 2\ngamma = 0.9\nscheduler = 'exponential'", "scheduler = 'cosine'", ""),
        ("epochs = 2\nfrozen_epochs = 1", "frozen_layers = 1", ""),
        ("", "epochs = 2", "epochs = 3"),
    ],
)
def test_candidates_complete_what_is_fixed(fixed: str, one: str, other: str) -> None:
    study = parse(fixed, one, other)
    assert StudySpec.from_json(study.to_json()) == study
    for number in range(2):
        assert study.recipe({}, 0, 0, number).epochs in (2, 3)


@pytest.mark.parametrize(
    ("fixed", "one", "other", "expected"),
    [
        ("", "epochs = 2", "", ["candidate[2].epochs: is missing, here and under [training]"]),
        ("", "", "", ["training.epochs: is missing; it is how many passes over the training part a trial makes"]),
        ("epochs = 0", "", "", ["training.epochs = 0: must be at least 1"]),
        (
            "epochs = 2\ngamma = 0.9",
            "",
            "learning_rate = 0.1",
            ['training.gamma: means nothing without scheduler = "exponential", which no trial can have'],
        ),
        (
            "epochs = 2\npeak_learning_rate = 0.1\nscheduler = 'onecycle'",
            "scheduler = 'cosine'",
            "scheduler = 'constant'",
            ['training.peak_learning_rate: means nothing without scheduler = "onecycle", which no trial can have'],
        ),
        (
            "epochs = 2\npeak_learning_rate = 0.1\nscheduler = 'onecycle'",
            "",
            "learning_rate = 0.5",
            ["candidate[2].peak_learning_rate = 0.1: must not be below learning_rate = 0.5"],
        ),
    ],
)
def test_what_a_candidate_lacks(fixed: str, one: str, other: str, expected: list[str]) -> None:
    assert mistakes(STUDY.format(fixed=fixed, one=one, other=other)) == expected


@pytest.mark.parametrize("name", ["seed", "stream_seed", "stream_offset"])
def test_a_candidate_has_no_seed_of_its_own(name: str) -> None:
    (mistake,) = mistakes(STUDY.format(fixed="epochs = 4", one=f"{name} = 7", other=""))
    assert mistake.startswith(f"candidate[1].{name}: all candidates have the same seeds")


@pytest.mark.parametrize("text", [ALONE, STUDY.format(fixed="epochs = 4", one="", other="gamma = 0.5")])
@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_seeds_are_not_pruned(text: str, pruner: str) -> None:
    section = f'[pruner]\nname = "{pruner}"\n'
    (mistake,) = mistakes(text.replace("[training]", f"{section}[training]"))
    assert mistake.startswith(f'pruner.name = "{pruner}": is for searches')
    assert ('"none" or "race"' in mistake) == ("candidate" in text)


def test_a_comparison_recorded_under_laxer_rules_is_still_read() -> None:
    tables = parse("epochs = 4", "learning_rate = 0.1", "").to_tables()
    tables |= {"pruner": {"name": "asha"}}
    tables["candidate"][0] |= {"seed": 7}
    study = StudySpec.from_json(json.dumps(tables))
    assert (study.pruner.name, study.recipe({}, 1, 1).seed) == ("asha", 7)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("gamma = 0.9", 'gamma means nothing with scheduler = "cosine"'),
        ("peak_learning_rate = 0.9", 'peak_learning_rate means nothing with scheduler = "cosine"'),
        (
            "momentum = 0.5\nscheduler = 'onecycle'\npeak_learning_rate = 0.9",
            'momentum means nothing with scheduler = "onecycle"',
        ),
    ],
)
def test_what_means_nothing_in_a_candidate_is_told(own: str, said: str) -> None:
    schedule = "" if "onecycle" in own else "\nscheduler = 'cosine'"
    assert parse(f"epochs = 2{schedule}", own, "batch_size = 32").cautions() == [f'candidate "one": {said}']


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("learning_rate = 0.1", "learning_rate = 0.1", True),
        ("", "learning_rate = 0.01", True),  # the default
        ("gamma = 0.8\nscheduler = 'exponential'", "gamma = 0.9\nscheduler = 'exponential'", False),
    ],
)
def test_candidates_that_train_the_same_are_told(one: str, other: str, same: bool) -> None:
    told = ['candidates "one" and "other" train the same'] if same else []
    assert parse("epochs = 2", one, other).cautions() == told


def test_one_mistake_brings_no_other() -> None:
    text = STUDY.format(fixed="epochs = 2", one="", other="batch_size = 32").replace('label = "one"', "")
    assert mistakes(text.replace('label = "other"', "")) == [
        f"candidate[{number}].label: is missing; it is what results call the candidate" for number in (1, 2)
    ]
    assert [one[:14] for one in mistakes(ALONE.replace("seeds = 3", "seeds = ['a']"))] == ['seeds holds "a']
