"""Study files: what they mean, and every mistake by its name."""

import json

import pytest

from hpsearch import spec
from hpsearch.errors import StudyFileError, UsageError
from hpsearch.recipe import Recipe
from tests.studies import CANDIDATES

STUDY = """
name = "small"
seed = 3
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = 4
[space]
peak_learning_rate = { times = "learning_rate", low = 1.0, high = 30.0, log = true }
learning_rate = { low = 1e-4, high = 1e-1, log = true }
scheduler = ["constant", "onecycle"]
batch_size = { choices = [32, 64] }
hidden_width = { low = 64, high = 256, step = 64 }
optimizer = ["sgd", "adam"]
momentum = { low = 0.5, high = 0.9, when = { optimizer = "sgd" } }
[budget]
trials = 5
[[first]]
scheduler = "onecycle"
learning_rate = 0.01
peak_learning_rate = 0.1
"""

SEEDS = """
name = "baseline"
seeds = 3
[model]
name = "2lp"
[data]
name = "digits"
[training]
epochs = 2
learning_rate = 1
"""


def mistakes(text, overrides=()):
    with pytest.raises(StudyFileError) as caught:
        spec.build(spec.with_overrides(spec.read_tables(text, "s.toml"), overrides), "s.toml")
    assert all(mistake.startswith("s.toml: ") and "\n" not in mistake for mistake in caught.value.mistakes)
    return caught.value.mistakes


def mistake(text, *overrides):
    """The only mistake."""
    (one,) = mistakes(text, overrides)
    return one


# What a study means


def test_the_peak_rate_is_a_multiple_of_the_initial_rate():
    study = spec.parse(STUDY, "s.toml")
    params = {"scheduler": "onecycle", "learning_rate": 0.02, "peak_learning_rate_factor": 5.0, "optimizer": "adam"}
    recipe = study.recipe(params, seed=7, stream_seed=8)
    expected = Recipe("lenet", 4, "adam", 0.02, 0.1, "onecycle", seed=7, stream_seed=8)
    assert recipe == expected


def test_any_factor_gives_a_peak_that_is_not_below_the_start():
    study = spec.parse(STUDY, "s.toml")
    for rate in (1e-4, 0.1, 0.07, 1 / 30):
        params = {"scheduler": "onecycle", "learning_rate": rate, "peak_learning_rate_factor": 1.0}
        assert study.recipe(params, 0, 0).peak_learning_rate == rate


def test_first_configurations_are_recorded_as_factors():
    (first,) = spec.parse(STUDY, "s.toml").first
    assert first == {"scheduler": "onecycle", "learning_rate": 0.01, "peak_learning_rate_factor": pytest.approx(10)}


def test_fixed_peak_counts_only_in_onecycle_trials():
    overrides = [
        "training.peak_learning_rate=0.5",
        "space.scheduler=['exponential', 'onecycle']",
        "space.gamma={low = 0.5, high = 1.5}",
        "first=[]",
    ]
    tables = spec.with_overrides(spec.read_tables(STUDY, "s.toml"), overrides)
    del tables["space"]["peak_learning_rate"]
    study = spec.build(tables, "s.toml")
    assert study.recipe({"scheduler": "onecycle"}, 0, 0).peak_learning_rate == 0.5
    assert study.recipe({"scheduler": "exponential", "gamma": 1.5}, 0, 0).peak_learning_rate is None
    assert study.space["gamma"].when == {"scheduler": ("exponential",)}


def test_seeds_without_a_space_are_trials():
    study = spec.parse(SEEDS, "s.toml")
    assert (study.seeds, study.budget.trials, study.pruner.name, study.parameters) == ((0, 1, 2), 3, "none", {})
    assert study.recipe({}, seed=2, stream_seed=9) == Recipe("2lp", 2, learning_rate=1.0, seed=2, stream_seed=9)
    assert spec.parse(SEEDS.replace("seeds = 3", "seeds = [5, 9]"), "s.toml").seeds == (5, 9)


def test_conditions_on_fixed_values_are_settled():
    fixed = STUDY.replace("epochs = 4", 'epochs = 4\nscheduler = "onecycle"').replace(
        'scheduler = ["constant", "onecycle"]\n', ""
    )
    fixed = fixed.replace('momentum = { low = 0.5, high = 0.9, when = { optimizer = "sgd" } }\n', "")
    assert spec.parse(fixed, "s.toml").space["peak_learning_rate"].when == {}


@pytest.mark.parametrize("text", [STUDY, SEEDS])
def test_json_reads_back(text):
    study = spec.parse(text, "s.toml")
    assert spec.StudySpec.from_json(study.to_json()) == study


def test_objective_direction():
    assert spec.parse(STUDY, "s").objective.direction == "maximize"
    assert spec.parse(STUDY + '[objective]\nmetric = "validation_loss"', "s").objective.direction == "minimize"


def test_where_all_candidates_have_epochs_of_their_own_the_fixed_ones_are_nobodys():
    text = CANDIDATES.replace("epochs = 2", "epochs = 100").replace("label =", "epochs = 3\nlabel =")
    assert spec.parse(text + "[budget]\nepochs = 20\n", "s.toml").max_epochs == 3
    other = text.replace("epochs = 3\n", "", 1)
    assert spec.parse(other, "s.toml").max_epochs == 100
    with pytest.raises(UsageError, match=r"budget\.epochs = 20"):
        spec.parse(other + "[budget]\nepochs = 20\n", "s.toml")


def test_seed_and_epochs_may_be_searched():
    text = STUDY.replace("epochs = 4", "").replace("[space]", "[space]\nepochs = { low = 2, high = 9 }\nseed = [1, 2]")
    study = spec.parse(text, "s.toml")
    assert study.max_epochs == 9
    recipe = study.recipe({"epochs": 3, "seed": 2}, seed=77, stream_seed=0)
    assert (recipe.epochs, recipe.seed) == (3, 2)


def test_the_precision_may_be_fixed_or_searched():
    fixed = spec.build(spec.with_overrides(spec.read_tables(STUDY, "s"), ["training.precision=tf32"]), "s")
    assert fixed.recipe({}, 0, 0).precision == "tf32"
    overrides = ["space.precision=['float32', 'bfloat16']", "first=[{precision='bfloat16'}]"]
    searched = spec.build(spec.with_overrides(spec.read_tables(STUDY, "s"), overrides), "s")
    assert searched.recipe(searched.first[0], 0, 0).precision == "bfloat16"
    assert spec.parse(STUDY, "s").recipe({}, 0, 0).precision == "float32"


def test_recorded_names_of_another_study_are_refused():
    with pytest.raises(UsageError, match="dropout is no hyperparameter"):
        spec.parse(STUDY, "s.toml").recipe({"dropout": 0.1}, 0, 0)


# Overrides


def test_overrides():
    tables = spec.read_tables(STUDY, "s.toml")
    changed = spec.with_overrides(
        tables, ["training.epochs=9", "space.learning_rate.high=0.5", "training.augmentation=paper", "name='other'"]
    )
    study = spec.build(changed, "s.toml")
    assert (study.max_epochs, study.space["learning_rate"].high, study.name) == (9, 0.5, "other")
    assert study.training["augmentation"] == "paper"
    assert tables["training"] == {"epochs": 4}  # the original is left alone


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", "name.first=3", "first.0.seed=1"])
def test_overrides_that_lead_nowhere(override):
    with pytest.raises(StudyFileError, match="--set"):
        spec.with_overrides(spec.read_tables(STUDY, "s.toml"), [override])


def test_an_override_cannot_smuggle_in_other_keys():
    assert spec.with_overrides({}, ["name=1\nseed=2"]) == {"name": "1\nseed=2"}


# Mistakes


def test_syntax_error_has_its_line():
    assert "line 2" in mistake('name = "a"\nx = ')


@pytest.mark.parametrize(
    ("override", "key", "rule"),
    [
        ("nmae=x", "nmae", "did you mean name?"),
        ("name=a b", "name", "letters"),
        ("seed=-1", "seed = -1", "at least 0"),
        ("modle.name=lenet", "modle", "did you mean model?"),
        ("model.nam=lenet", "model.nam", "unknown key"),
        ("data=digits", 'data = "digits"', "must be a section"),
        ("data.image_size='32'", 'data.image_size = "32"', "whole number"),
        ("data.image_size=true", "data.image_size = true", "whole number"),
        ("training.epochs=0", "training.epochs = 0", "at least 1"),
        ("training.epochs=-5", "training.epochs = -5", "at least 1"),
        ("training.epochs=1.5", "training.epochs = 1.5", "whole number"),
        ("training.epochs=99999999999999999999", "training.epochs", "64 bits"),
        ("training.weight_decay=-0.1", "training.weight_decay = -0.1", "at least 0"),
        ("training.weight_decay=nan", "training.weight_decay = nan", "finite"),
        ("training.clip_norm=inf", "training.clip_norm = inf", "finite"),
        ("training.dropout=1.0", "training.dropout = 1.0", "below 1"),
        ("training.augmentation=3", "training.augmentation = 3", "name in quotes"),
        ("training.precision=bf16", 'training.precision = "bf16"', 'must be "float32", "tf32" or "bfloat16"'),
        ("training.precision=16", "training.precision = 16", "name in quotes"),
        ("training.start=weights", 'training.start = "weights"', 'must be "scratch" or "export"'),
        ("space.precision=['float32', 'bf16']", 'space.precision.choices holds "bf16"', '"tf32" or "bfloat16"'),
        ("first=[{precision='tf32'}]", "first[1].precision", "not searched"),
        ("training.augmentatoin=none", "training.augmentatoin", "did you mean augmentation?"),
        ("training.model=lenet", "training.model", "[model]"),
        ("training.batch_size=64", "space.batch_size", "fixed under [training] as well"),
        ("space.learning_rate.low=0", "space.learning_rate.low = 0.0", "above 0"),
        ("space.hidden_width.low=512", "space.hidden_width.low = 512", "not be above high"),
        ("space.batch_size=[]", "space.batch_size.choices = []", "at least one"),
        ("space.batch_size=[0, 64]", "space.batch_size.choices holds 0", "at least 1"),
        ("space.batch_size=[64, 64]", "space.batch_size.choices holds 64", "more than once"),
        ("space.momentum.high=1.0", "space.momentum.high = 1.0", "below 1"),
        ("space.momentum.when.optimiser=sgd", "space.momentum.when.optimiser", "did you mean optimizer?"),
        ("space.momentum.when.optimizer=adamw", "space.momentum.when.optimizer", "cannot take it"),
        ("space.peak_learning_rate.low=0.5", "space.peak_learning_rate.low = 0.5", "at least 1"),
        ("space.peak_learning_rate.times=hidden", "space.peak_learning_rate.times", "not in this study"),
        ("space.peak_learning_rate.times=optimizer", "space.peak_learning_rate.times", "not a number"),
        ("space.peak_learning_rate.times=momentum", "space.peak_learning_rate.times", 'must be "learning_rate"'),
        ("space.gamma=[0.9]", "space.gamma", "means nothing without"),
        ("training.stream_offset=5", "training.stream_offset", "studies that search nothing"),
        ("space.stream_offset=[0, 5]", "space.stream_offset", "studies that search nothing"),
        ("sampler.startup_trial=3", "sampler.startup_trial", "did you mean startup_trials?"),
        ("pruner.factor=1", "pruner.factor = 1", "at least 2"),
        ("pruner.min_epochs=5", "pruner.min_epochs = 5", "at most epochs = 4"),
        ("pruner={name='median', factor=3}", "pruner.factor", "median does not take it"),
        ("budget.trials=0", "budget.trials = 0", "at least 1"),
        ("budget.trials=1000000001", "budget.trials = 1000000001", "at most 1000000000"),
        ("data.image_size=320000", "data.image_size = 320000", "at most 4096"),
        ("space.weight_decay={low=0, high=1, step=1e-40}", "space.weight_decay.step = 1e-40", "too small to count"),
        ("space.learning_rate={times='clip_norm', low=1, high=2}", "space.learning_rate.times", "is not in this study"),
        ("training.epochs=" + "1" * 5000, 'training.epochs = "111', "whole number"),
        ("training.epochs=0x" + "f" * 5000, "training.epochs = 0xfff", "64 bits"),
        ("first=[{}, {}, {}, {}, {}, {}]", "budget.trials = 5", "at least 6"),
        ("first=[{batch_size=true}]", "first[1].batch_size = true", "outside [space]"),
        ("budget.epoch=10", "budget.epoch", "unknown key"),
        ("budget.epochs=3", "budget.epochs = 3", "at least epochs = 4"),
        ("budget.gpu_hours=0", "budget.gpu_hours = 0", "above 0"),
        ("budget.target=97", "budget.target = 97", "at most 1"),
        ("objective.metric=accuracy", "objective.metric", "validation_loss"),
        ("seeds=2", "seeds", "search nothing"),
        ("first=[3]", "first", "[[first]]"),
        ("first=[{learning_rate=5.0}]", "first[1].learning_rate = 5.0", "outside [space]"),
        ("first=[{batch_size=48}]", "first[1].batch_size = 48", "outside [space]"),
        ("first=[{epochs=9}]", "first[1].epochs = 9", "is fixed to 4"),
        ("first=[{rate=9}]", "first[1].rate", "not searched"),
        ("first=[{momentum=0.9}]", "first[1].momentum", 'only when optimizer is "sgd"'),
        ("first=[{scheduler='onecycle', peak_learning_rate=1}]", "first[1].peak_learning_rate", "needs learning_rate"),
        (
            "first=[{scheduler='onecycle', learning_rate=0.1, peak_learning_rate=0.05}]",
            "first[1].peak_learning_rate",
            "outside",
        ),
    ],
)
def test_mistake(override, key, rule):
    message = mistake(STUDY, override)
    assert message.startswith(f"s.toml: {key}")
    assert rule in message


def test_a_plain_peak_range_must_begin_above_the_highest_rate():
    fine = "space.peak_learning_rate={low = 0.1, high = 1.0}"
    first = "first=[{scheduler='onecycle', peak_learning_rate=0.5}]"
    study = spec.build(spec.with_overrides(spec.read_tables(STUDY, "s"), [fine, first]), "s")
    assert study.recipe(study.first[0], 0, 0).peak_learning_rate == 0.5
    assert 'times = "learning_rate"' in mistake(STUDY, fine.replace("0.1", "0.05"), first)
    assert 'times = "learning_rate"' in mistake(STUDY, "space.peak_learning_rate=[0.05, 0.5]", first)


def test_a_fixed_peak_and_a_rate_that_is_a_multiple():
    rate = "learning_rate = { times = 'clip_norm', low = 0.1, high = 10.0 }"
    text = SEEDS.replace("seeds = 3", "").replace(
        "learning_rate = 1", "peak_learning_rate = 5.0\nscheduler = 'onecycle'"
    )
    text += f"clip_norm = 1.0\n[space]\n{rate}\n[budget]\ntrials = 3"
    assert "must not be below the highest learning_rate, 10.0" in mistake(text)
    assert "must not be below the highest learning_rate, 20.0" in mistake(text, "training.clip_norm=2.0")
    assert spec.build(spec.with_overrides(spec.read_tables(text, "s"), ["training.clip_norm=0.5"]), "s")
    for source in ("hidden", "optimizer"):
        assert "times" in "".join(mistakes(text, [f"space.learning_rate.times={source}", "training.optimizer=sgd"]))
    circle = ["training.clip_norm=1.0", "space.clip_norm={times='learning_rate', low=1, high=2}"]
    assert any("in a circle" in one for one in mistakes(text, circle))


def test_fixed_peak_must_not_be_below_the_rate():
    text = SEEDS + 'scheduler = "onecycle"\npeak_learning_rate = 0.5'
    assert "must not be below" in mistake(text)
    assert "needs it" in mistake(SEEDS + 'scheduler = "onecycle"')
    assert "means nothing without" in mistake(SEEDS + "peak_learning_rate = 2.0")


@pytest.mark.parametrize(
    "clip_norm",
    ["training.clip_norm=0", "space.clip_norm=[1.0, 0.0]", "space.clip_norm={low = 0.0, high = 1.0}"],
)
def test_a_multiple_of_what_can_be_nothing(clip_norm):
    rate = "space.learning_rate={times = 'clip_norm', low = 1e-4, high = 1e-1, log = true}"
    text = STUDY.partition("[[first]]")[0].replace('peak_learning_rate = { times = "learning_rate"', "weight_decay = {")
    text = text.replace("weight_decay = {,", "weight_decay = {").replace('"onecycle"', '"cosine"')
    assert "can be 0, and learning_rate must be above 0" in mistake(text, rate, clip_norm)
    assert spec.build(spec.with_overrides(spec.read_tables(text, "s"), [rate, "training.clip_norm=0.5"]), "s")
    chain = "space.weight_decay={times = 'clip_norm', low = 1.0, high = 2.0}"  # a multiple of a multiple
    assert "can be 0" in mistake(text, rate.replace("clip_norm", "weight_decay"), chain, clip_norm)


def test_a_budget_in_which_no_candidate_has_room():
    text = SEEDS + "[budget]\nepochs = 5\n[[candidate]]\nlabel = 'short'\n[[candidate]]\nlabel = 'long'\nepochs = 9"
    assert "budget.epochs = 5: must be at least epochs = 9" in mistake(text)


def test_neither_space_nor_seeds():
    text = SEEDS.replace("seeds = 3", "") + "[budget]\ntrials = 3"
    assert "space: is missing, and so is seeds" in mistake(text)


def test_more_trials_than_seeds():
    assert "at most 3" in mistake(SEEDS, "budget.trials=4")
    assert spec.build(spec.with_overrides(spec.read_tables(SEEDS, "s"), ["budget.trials=2"]), "s").budget.trials == 2


def test_a_circle_of_conditions():
    found = mistakes(STUDY, ["space.optimizer={choices=['sgd', 'adam'], when={momentum=0.9}}"])
    assert any("depend on each other in a circle" in one for one in found)


def test_a_condition_that_never_holds():
    text = STUDY.replace('optimizer = ["sgd", "adam"]\n', "").replace("epochs = 4", 'epochs = 4\noptimizer = "adam"')
    assert "never holds" in mistake(text)


def test_the_grid_needs_steps():
    found = mistakes(STUDY, ["sampler.name=grid"])
    assert [one.split(":")[1] for one in found] == [
        " space.peak_learning_rate", " space.learning_rate", " space.momentum"
    ]  # fmt: skip


def test_nothing_at_all():
    found = "\n".join(mistakes(""))
    for key in ("name", "model.name", "data.name", "training.epochs", "budget.trials", "space"):
        assert f"s.toml: {key}: is missing" in found


def test_one_mistake_hides_no_other():
    found = "\n".join(
        mistakes(
            STUDY,
            [
                "nam=x",
                "training.epochs=0",
                "training.dropout=2",
                "space.learning_rate.low=0",
                "space.momentum={low=0.9, high=0.1, when={optimiser='sgd'}}",
                "budget.trials=0",
                "first=[{batch_size=7, scheduler='cosine'}]",
            ],
        )
    )
    for key in (
        "nam:", "training.epochs", "training.dropout", "space.learning_rate.low", "space.momentum.low",
        "space.momentum.when.optimiser", "budget.trials", "first[1].batch_size", "first[1].scheduler",
    ):  # fmt: skip
        assert f"s.toml: {key}" in found
    assert found.count("s.toml") == 9


def test_recipe_checks_itself():
    with pytest.raises(UsageError, match=r"momentum = 1\.0: must be at least 0 and below 1"):
        Recipe("lenet", 1, momentum=1.0)
    with pytest.raises(UsageError, match='must be "float32", "tf32" or "bfloat16"'):
        Recipe("lenet", 1, precision="half")
    with pytest.raises(UsageError, match="must not be below learning_rate"):
        Recipe("lenet", 1, learning_rate=0.1, peak_learning_rate=0.05)


def test_a_study_recorded_under_laxer_rules_is_still_read() -> None:
    """A grid took a seed, and a search a stream offset, without effect."""
    tables = spec.parse(STUDY, "small.toml").to_tables()
    choices = {"choices": [0.01, 0.1]}
    tables |= {"sampler": {"name": "grid", "seed": 3}, "space": {"learning_rate": choices}, "first": []}
    tables["training"] |= {"stream_offset": 0}
    assert spec.StudySpec.from_json(json.dumps(tables)).sampler.name == "grid"
