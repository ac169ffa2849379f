"""Parameters, their conditions, and the order in which a trial asks for them."""

import math

import pytest

from hpsearch.errors import StudyFileError
from hpsearch.space import Choice, Float, Int, active, asked, from_table, num_combinations, num_values, order, to_table

SPACE = {
    "peak_learning_rate": Float(1, 30, log=True, times="learning_rate", when={"scheduler": ("onecycle",)}),
    "scheduler": Choice(("constant", "onecycle")),
    "momentum": Float(0.8, 0.98, when={"optimizer": ("sgd",)}),
    "optimizer": Choice(("sgd", "adam")),
    "learning_rate": Float(1e-4, 1e-1, log=True),
}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Float(0.0, 1.0, log=True), "above 0"),
        (lambda: Float(-1.0, 1.0, log=True), "above 0"),
        (lambda: Float(2.0, 1.0), "must not be above high"),
        (lambda: Float(0.0, math.inf), "finite"),
        (lambda: Float(math.nan, 1.0), "finite"),
        (lambda: Float(0.0, 1.0, step=0.0), "step"),
        (lambda: Float(0.0, 1.0, step=0.3), "the last one is 0.9"),
        (lambda: Float(0.1, 1.0, step=0.1, log=True), "cannot be combined"),
        (lambda: Int(1, 100, step=2, log=True), "miss it"),
        (lambda: Int(1, 101, step=2, log=True), "cannot be combined"),
        (lambda: Int(0, 10, log=True), "above 0"),
        (lambda: Choice(()), "at least one"),
        (lambda: Choice((64, 32, 64)), "64 more than once"),
        (lambda: Choice((0.1, math.nan)), "finite"),
        (lambda: Choice((1, 2), when={"optimizer": ()}), "when.optimizer"),
    ],
)
def test_refuses_what_cannot_be_searched(make, rule):
    with pytest.raises(StudyFileError, match=rule):
        make()


def test_names_every_broken_rule_at_once():
    with pytest.raises(StudyFileError) as caught:
        Float(2.0, -1.0, log=True, step=-1.0, when={"optimizer": ()})
    assert len(caught.value.mistakes) == 3


def test_decimal_steps_reach_the_end():
    assert Float(0.1, 0.3, step=0.1).contains(0.3)
    assert Float(0.0, 0.6, step=0.05).contains(0.15)
    assert not Float(0.0, 0.6, step=0.05).contains(0.16)


def test_contains():
    assert Float(1e-4, 1e-1).contains(1e-1)
    assert not Float(1e-4, 1e-1).contains(0.11)
    assert not Float(0, 1).contains(True)
    wide = Float(1e-10, 1e-1, log=True)
    assert wide.contains(0.1 * (1 + 1e-12))
    assert wide.contains(1e-10 * (1 - 1e-12))
    assert not wide.contains(0.0)
    assert not wide.contains(5e-11)
    assert Int(64, 1024, step=64).contains(128)
    assert not Int(64, 1024, step=64).contains(100)
    assert not Int(1, 5).contains(2.0)
    assert Choice(("sgd",)).contains("sgd")


def test_asks_after_what_decides():
    names = list(asked(SPACE))
    assert set(names) == {"peak_learning_rate_factor", "scheduler", "momentum", "optimizer", "learning_rate"}
    assert names.index("scheduler") < names.index("peak_learning_rate_factor")
    assert names.index("learning_rate") < names.index("peak_learning_rate_factor")
    assert names.index("optimizer") < names.index("momentum")


def test_a_circle_is_named():
    circle = {"dropout": Float(0, 1, when={"gamma": (1,)}), "gamma": Float(0, 1, when={"dropout": (1,)})}
    with pytest.raises(StudyFileError, match="dropout and gamma depend on each other"):
        order(circle)


def test_active_needs_every_condition_and_a_chosen_source():
    both = Float(0, 1, when={"optimizer": ("sgd", "adam"), "scheduler": ("onecycle",)})
    assert active(both, {"optimizer": "adam", "scheduler": "onecycle"})
    assert not active(both, {"optimizer": "adam", "scheduler": "constant"})
    assert not active(both, {"optimizer": "adam"})  # the source itself was left out
    assert active(SPACE["optimizer"], {})


@pytest.mark.parametrize("parameter", [*SPACE.values(), Int(1, 9, step=2), Int(1, 8, log=True), Choice((0.1, 1.0))])
def test_tables_read_back(parameter):
    kind = int if isinstance(parameter, Int) else float if isinstance(parameter, Float) else None
    kind = kind or type(parameter.choices[0])
    assert from_table(kind, to_table(parameter)) == parameter


@pytest.mark.parametrize(
    ("kind", "table", "rule"),
    [
        (float, 0.1, r"belongs under \[training\]"),
        (float, {"low": 0.1}, "high: is missing"),
        (float, {"low": "0.1", "high": 1}, 'low = "0.1": must be a number'),
        (float, {"low": 0.1, "hgih": 1}, "did you mean high"),
        (float, {"low": 0.1, "high": 1, "log": 1}, "true or false"),
        (float, {"low": 0.1, "high": 1, "times": 2}, "times = 2"),
        (int, {"low": 1.5, "high": 2}, "whole number"),
        (int, {"low": 1, "high": 2, "times": "epochs"}, "times: unknown key"),
        (int, [1, 2.5], "choices holds 2.5"),
        (int, [1, True], "choices holds true"),
        (str, {"low": 1, "high": 2}, "needs choices"),
        (str, [["sgd"]], "name in quotes"),
        (str, {"choices": "sgd"}, "must be a list"),
        (float, {"low": 0, "high": 1, "when": "onecycle"}, "must be a table"),
        (float, {"low": 0, "high": 1, "when": {"optimizer": [["sgd"]]}}, "must be a number or a name"),
    ],
)
def test_tables_with_mistakes(kind, table, rule):
    with pytest.raises(StudyFileError, match=rule):
        from_table(kind, table)


@pytest.mark.parametrize(
    ("parameter", "number"),
    [
        (Choice(("sgd", "adam")), 2),
        (Float(0.1, 0.3, step=0.1), 3),
        (Float(0.1, 0.3), None),
        (Float(0.1, 0.1), 1),
        (Float(0.1, 0.1, log=True), 1),
        (Int(1, 7, step=3), 3),
        (Int(7, 7), 1),
    ],
)
def test_the_number_of_values(parameter, number):
    assert num_values(parameter) == number


def test_a_range_of_one_value_leaves_a_space_finite():
    assert num_combinations({"optimizer": Choice(("sgd", "adam")), "learning_rate": Float(0.01, 0.01)}) == 2
    assert num_combinations({"optimizer": Choice(("sgd", "adam")), "learning_rate": Float(0.01, 0.02)}) is None
