"""What a study says without any effect, or twice: refused, unless the study is recorded already."""

import json

import pytest

from hpsearch import spec
from hpsearch.errors import StudyFileError
from hpsearch.spec import StudySpec
from tests.studies import CANDIDATES

STUDY = """
name = "small"
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = 4
[space]
learning_rate = { low = 1e-3, high = 0.1, log = true }
scheduler = ["constant", "onecycle"]
peak_learning_rate = { times = "learning_rate", low = 1.0, high = 30.0, log = true }
[budget]
trials = 5
"""
PEAK = "scheduler='onecycle', learning_rate=0.01"


def build(*overrides: str, text: str = STUDY) -> StudySpec:
    return spec.build(spec.with_overrides(spec.read_tables(text, "s.toml"), overrides), "s.toml")


def mistake(*overrides: str, text: str = STUDY) -> str:
    """The only mistake."""
    with pytest.raises(StudyFileError) as caught:
        build(*overrides, text=text)
    (one,) = caught.value.mistakes
    return one.removeprefix("s.toml: ")


def test_an_export_that_no_trial_begins_with() -> None:
    assert mistake("model.export=out").startswith('model.export = "out": no trial begins with it;')
    assert mistake("model.export=out", text=CANDIDATES).startswith('model.export = "out": no trial begins with it;')
    for start in ("training.start=export", "space.start=['scratch', 'export']", "training.start=scratch"):
        assert build("model.export=out", start).model.export == "out"  # the last: as config.toml of an export may say
    build("model.export=out", text=CANDIDATES.replace("batch_size = 32", "start = 'export'"))


@pytest.mark.parametrize("name", ["frozen_epochs", "frozen_rate"])
def test_freezing_of_no_layers(name: str) -> None:
    assert mistake(f"training.{name}=1").startswith(f"training.{name}: means nothing without frozen_layers")
    assert mistake(f"space.{name}=[1, 2]").startswith(f"space.{name}: means nothing without frozen_layers")
    text = CANDIDATES.replace("batch_size = 32", f"{name} = 1")
    assert mistake(text=text).startswith(f"candidate.{name}: means nothing without frozen_layers")
    build(f"training.{name}=1", "training.frozen_layers=0")  # as config.toml of an export says
    build(f"space.{name}=[1, 2]", "space.frozen_layers=[0, 1]")


def test_a_configuration_that_is_tried_first_twice() -> None:
    one = "{learning_rate=0.01, scheduler='constant'}"
    assert mistake(f"first=[{one}, {{learning_rate=0.1}}, {one}]").startswith("first[3]: says the same as first[1]")
    peak, factor = f"{{{PEAK}, peak_learning_rate=0.03}}", f"{{{PEAK}, peak_learning_rate_factor=3}}"
    assert mistake(f"first=[{peak}, {factor}]").startswith("first[2]: says the same as first[1]")
    assert len(build(f"first=[{peak}, {factor.replace('3}', '4}')}, {{}}, {{}}]").first) == 4


def test_a_peak_and_its_factor() -> None:
    both = f"first=[{{{PEAK}, peak_learning_rate=0.03, peak_learning_rate_factor=20.0}}]"
    assert mistake(both).startswith("first[1].peak_learning_rate_factor = 20.0: peak_learning_rate says that already")


def test_a_study_recorded_under_laxer_rules_is_still_read() -> None:
    tables = build().to_tables()
    tables["model"] |= {"export": "sha256:0"}
    tables["training"] |= {"frozen_epochs": 1}
    tables |= {"first": [{"learning_rate": 0.01}] * 2}
    study = StudySpec.from_json(json.dumps(tables))
    assert (study.model.export, len(study.first)) == ("sha256:0", 2)


@pytest.mark.parametrize(("sampler", "pruner"), [("gp", "none"), ("cmaes", "none"), ("tpe", "asha"), ("qmc", "asha")])
def test_samplers_that_learn_from_completed_trials_have_them(sampler: str, pruner: str) -> None:
    assert build(f"sampler.name={sampler}").pruner.name == pruner
    assert build(f"sampler.name={sampler}", "pruner.name=median").pruner.name == "median"


def test_a_median_over_schedules_of_different_lengths() -> None:
    text = STUDY.replace("[space]", "[pruner]\nname = 'median'\n[space]").replace("[training]\nepochs = 4\n", "")
    searched = text.replace("[space]", "[space]\nepochs = [3, 24]")
    assert mistake(text=searched).startswith('pruner.name = "median": compares all trials at an epoch')
    build(text=searched.replace("'median'", "'asha'"))
    build("training.epochs=4", text=text)


def test_a_momentum_where_the_schedule_has_its_own() -> None:
    momentum = "space.momentum={ low = 0.1, high = 0.9 }"
    assert mistake(momentum, "space.scheduler=['onecycle']").startswith("space.momentum: means nothing with scheduler")
    assert [one[:40] for one in build(momentum).cautions()] == ["space.momentum: is searched with schedul"]
    assert build(momentum, "space.momentum.when={ scheduler = 'constant' }").cautions() == []
    fixed = STUDY.replace('scheduler = ["constant", "onecycle"]\n', "")
    fixed = fixed.replace("[training]", "[training]\nscheduler = 'onecycle'")
    assert mistake(momentum, text=fixed).startswith("space.momentum: means nothing with scheduler")
    assert build("training.momentum=0.5", text=fixed).cautions() == []  # as config.toml of an export says
