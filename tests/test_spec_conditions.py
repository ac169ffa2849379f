"""Conditions on what a trial cannot do without: refused, or reckoned with."""

import pytest

from hpsearch import spec
from hpsearch.errors import StudyFileError

STUDY = """
name = "small"
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = 2
[space]
optimizer = ["sgd", "adam"]
scheduler = ["constant", "onecycle"]
learning_rate = { low = 0.001, high = 0.005 }
[budget]
trials = 5
"""
PEAK = "training.peak_learning_rate"


def build(*overrides: str, without: str = "") -> spec.StudySpec:
    text = "\n".join(line for line in STUDY.splitlines() if not without or not line.startswith(without))
    return spec.build(spec.with_overrides(spec.read_tables(text, "s.toml"), overrides), "s.toml")


def mistake(*overrides: str, without: str = "") -> str:
    """The only mistake."""
    with pytest.raises(StudyFileError) as caught:
        build(*overrides, without=without)
    (one,) = caught.value.mistakes
    return one


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_trial_has_its_number_of_epochs(optimizer: str) -> None:
    epochs = f"space.epochs={{low=1, high=3, when={{optimizer='{optimizer}'}}}}"
    rule = "space.epochs.when: cannot be given, because every trial needs its number of epochs"
    assert rule in mistake(epochs, f"{PEAK}=0.1", without="epochs")
    assert build("space.epochs={low=1, high=3}", f"{PEAK}=0.1", without="epochs").max_epochs == 3


def test_every_trial_that_climbs_has_a_peak() -> None:
    peak = "space.peak_learning_rate={times='learning_rate', low=1.0, high=3.0, when={%s}}"
    rule = 'space.peak_learning_rate.when: must name nothing but scheduler, because every trial with scheduler = "onec'
    assert rule in mistake(peak % "optimizer='sgd'")
    assert rule in mistake(peak % "optimizer='sgd', scheduler='onecycle'")
    assert rule in mistake(peak % "optimizer='sgd'", "training.scheduler=onecycle", without="scheduler")
    written, implied = build(peak % "scheduler='onecycle'"), build(peak % "")
    assert written.space["peak_learning_rate"].when == {"scheduler": ("onecycle",)}
    assert written.space == implied.space


@pytest.mark.parametrize("peak", [f"{PEAK}=0.007", "space.peak_learning_rate={low=0.007, high=0.1}"])
@pytest.mark.parametrize(
    "rate",
    [
        "{low=0.001, high=0.005, when={optimizer='sgd'}}",
        "{choices=[0.001, 0.005], when={optimizer='sgd'}}",
        "{times='clip_norm', low=0.001, high=0.005, when={optimizer='sgd'}}",
        "{low=0.001, high=0.005, when={scheduler='constant'}}",
    ],
)
def test_a_rate_that_some_trials_do_not_have_is_the_default_there(peak: str, rate: str) -> None:
    rest = (f"space.learning_rate={rate}", "training.clip_norm=1.0")
    assert "must not be below the highest learning_rate, 0.01;" in mistake(peak, *rest)
    study = build(peak.replace("0.007", "0.02"), *rest)
    factor_or_peak = {"peak_learning_rate": 0.02} if "space" in peak else {}
    recipe = study.recipe({"scheduler": "onecycle", "optimizer": "adam", **factor_or_peak}, 0, 0)
    assert (recipe.learning_rate, recipe.peak_learning_rate) == (0.01, 0.02)


@pytest.mark.parametrize(
    ("condition", "overrides"),
    [
        ("scheduler='onecycle'", ()),  # the others have no peak
        ("optimizer='sgd'", ("training.optimizer=sgd",)),
    ],
)
def test_a_rate_that_every_trial_with_a_peak_has(condition: str, overrides: tuple[str, ...]) -> None:
    rate = f"space.learning_rate={{low=0.001, high=0.005, when={{{condition}}}}}"
    without = "optimizer" if overrides else ""
    assert build(f"{PEAK}=0.007", rate, *overrides, without=without).recipe(
        {"scheduler": "onecycle", "learning_rate": 0.005}, 0, 0
    )
    assert "the highest learning_rate, 0.005;" in mistake(f"{PEAK}=0.004", rate, *overrides, without=without)
