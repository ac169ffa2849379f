"""The studies that come with hpsearch: each is valid, explained, and asks what it should."""

import pytest

from docs import generate
from hpsearch import catalogue
from hpsearch.recipe import Recipe
from hpsearch.space import active
from hpsearch.spec import StudySpec

NAMES = catalogue.study_names()


def test_all_are_there():
    assert {"quickstart", "lenet", "2lp", "3lp", "lenet-bn", "baseline-lenet", "baseline-2lp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_study(name):
    study = catalogue.read(name)
    assert study.name == name
    assert StudySpec.from_json(study.to_json()) == study
    for params in study.first:
        study.recipe(params, seed=0, stream_seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_momentum_is_not_searched_where_onecycle_has_its_own(name):
    space = catalogue.read(name).space
    if "momentum" in space:
        assert not active(space["momentum"], {"optimizer": "sgd", "scheduler": "onecycle"})
        assert active(space["momentum"], {"optimizer": "sgd", "scheduler": "cosine"})


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_question_cost_and_command(name):
    text, _ = catalogue.find(name)
    comments = generate.header(text)
    assert comments["question"].endswith((".", "?"))
    assert comments["Cost"]
    assert f"hpsearch create-study {name} && hpsearch worker {name}" in comments["Run"]


@pytest.mark.parametrize("name", ["baseline-lenet", "baseline-2lp"])
def test_baseline(name):
    study = catalogue.read(name)
    assert (study.seeds, study.budget.trials, study.pruner.name) == (tuple(range(15)), 15, "none")
    recipe = study.recipe({}, seed=4, stream_seed=5)
    model = name.removeprefix("baseline-")
    assert recipe == Recipe(
        model, 100, "sgd", 0.0001, momentum=0.0, batch_size=64, augmentation="none", seed=4, stream_seed=5
    )


@pytest.mark.parametrize("page", generate.PAGES)
def test_documentation_is_fresh(page):
    assert generate.read(page) == generate.PAGES[page]()
