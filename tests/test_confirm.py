"""Confirmation: the right candidates over new seeds, and what is said of them."""

import json
import math
import statistics
from pathlib import Path

import optuna
import pytest

from hpsearch import confirm
from hpsearch.confirm import configuration
from hpsearch.errors import StorageError, UsageError
from hpsearch.recipe import Recipe
from hpsearch.spec import parse
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study, ranked
from tests.chain import SMALL, Chain
from tests.studies import CANDIDATES


def test_candidates_are_the_best_the_first_and_the_default(chain: Chain) -> None:
    spec, best = chain.confirmation.spec, ranked(chain.search)
    labels = [label for label, _ in spec.candidates]
    wanted = [f"trial {trial.number}" + (" (first)" if trial.number == 0 else "") for trial in best[:2]]
    assert labels[:2] == wanted
    assert any(label == "trial 0 (first)" for label in labels)
    assert labels[-1] == "default"
    assert spec.candidates[0][1]["learning_rate"] == best[0].params["learning_rate"]
    assert spec.candidates[-1][1]["learning_rate"] == 0.01  # Recipe's own
    assert spec.pruner.name == "race"
    assert not spec.space


def test_the_default_of_a_study_whose_schedule_needs_a_peak(tmp_path: Path) -> None:
    """`lenet-long` fixes onecycle, and a peak rate has no default of its own."""
    text = SMALL.partition("[[first]]")[0].replace("epochs = 3", "epochs = 3\nscheduler = 'onecycle'")
    text = text.replace("momentum = {", "peak_learning_rate = { times = 'learning_rate', low = 2.0, high = 20.0 } #")
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(text, "peak.toml"), "peak")
        [(origin, values)] = confirm._candidates(load_study(database, "peak"), [], 1)
    assert origin.label == "default"
    assert (values["learning_rate"], values["peak_learning_rate"]) == (0.01, 0.02)


def test_the_default_where_the_lowest_peak_is_below_the_usual_rate(sqlite: Database) -> None:
    """A peak rate is never below the initial one: that is the study's lowest then, and not 0.01."""
    text = SMALL.partition("[[first]]")[0].replace("epochs = 3", "epochs = 3\nscheduler = 'onecycle'")
    text = text.replace("low = 1e-3, high = 1e-1", "low = 3e-4, high = 3e-3")
    text = text.replace("momentum = {", "peak_learning_rate = { low = 3e-3, high = 0.1, log = true } #")
    create_study(sqlite, parse(text, "peak.toml"), "peak")
    [(_, values)] = confirm._candidates(load_study(sqlite, "peak"), [], 1)
    assert (values["learning_rate"], values["peak_learning_rate"]) == (3e-4, 3e-3)


@pytest.mark.parametrize("epochs", ["{ low = 2, high = 5 }", "[5, 2]"])
def test_the_default_of_a_study_that_searches_its_epochs(epochs: str, sqlite: Database) -> None:
    text = SMALL.partition("[[first]]")[0].replace("epochs = 3", "").replace("[space]", f"[space]\nepochs = {epochs}")
    create_study(sqlite, parse(text, "long.toml"), "long")
    [(origin, values)] = confirm._candidates(load_study(sqlite, "long"), [], 1)
    assert (origin.label, values["epochs"]) == ("default", 5)


def test_seeds_are_new_and_paired(chain: Chain) -> None:
    searched = [trial.user_attrs[RECIPE_KEY] for trial in chain.search.optuna_study.trials]
    confirmed = [trial.user_attrs[RECIPE_KEY] for trial in chain.confirmation.optuna_study.trials]
    assert len({recipe["seed"] for recipe in confirmed}) == 3
    for name in ("seed", "stream_seed"):
        assert not {recipe[name] for recipe in searched} & {recipe[name] for recipe in confirmed}
    num = len(chain.confirmation.spec.candidates)
    for block in range(3):
        pair = confirmed[block * num : (block + 1) * num]
        assert len({(recipe["seed"], recipe["stream_seed"]) for recipe in pair}) == 1


def test_the_result_is_what_is_recorded(chain: Chain) -> None:
    found = confirm.result(chain.confirmation)
    assert found.finished
    assert (found.seeds_done, found.num_seeds, found.confirms) == (3, 3, "small")
    best = found.standings[0]
    assert best.in_set
    assert best.verdict == "best"
    for one in found.standings:
        recorded = [trial.value for trial in confirm.groups(chain.confirmation)[one.number].trials]
        assert list(one.values) == recorded[: one.over_seeds.num]
        assert one.over_seeds.mean == pytest.approx(statistics.fmean(one.values))
        assert one.over_seeds.low <= one.over_seeds.mean <= one.over_seeds.high
        assert best.over_seeds.mean >= one.over_seeds.mean
        if one.origin.value is not None:
            assert one.luck is not None
            assert one.luck.mean == pytest.approx(one.origin.value - one.over_seeds.mean)
    assert next(one for one in found.standings if one.label == "default").luck is None


def test_of_a_loss_the_lowest_is_best_and_luck_is_still_what_was_promised_too_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpsearch.cli.confirm import show
    from tests.chain import make

    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        text = ("[budget]\ntrials = 4", '[objective]\nmetric = "validation_loss"\n[budget]\ntrials = 4')
        loss = make(database, tmp_path, [text])
        found = confirm.result(loss.confirmation)
        means = [one.over_seeds.mean for one in found.standings if one.in_set]
        assert means[0] == min(means)
        assert all(one.over_seeds.low <= one.over_seeds.high for one in found.standings)
        first = next(one for one in found.standings if one.origin.value is not None)
        assert first.luck is not None
        assert first.luck.mean == pytest.approx(first.over_seeds.mean - (first.origin.value or 0.0))
        show(found)
        best = ranked(loss.search)[0]
    assert f"luck: the search reported {best.value:.4f} for trial {best.number}" in capsys.readouterr().out


def test_on_both_storages(storage_url: str, tmp_path: Path) -> None:
    from tests.chain import make

    with create(storage_url) as database:
        made = make(database, tmp_path, [("epochs = 3", "epochs = 1"), ("trials = 4", "trials = 2")])
        assert confirm.result(made.confirmation).finished


def test_a_result_before_the_end(chain: Chain, tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, chain.confirmation.spec, "small-confirm")
        found = confirm.result(load_study(database, "small-confirm"))
        assert not found.finished
        assert found.seeds_done == 0
        assert all(math.isnan(one.over_seeds.mean) for one in found.standings)
        assert {one.verdict for one in found.standings} == {"waits"}


def test_what_cannot_be_confirmed(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        confirm.create(chain.database, chain.search, 2, 3)
    with pytest.raises(UsageError, match="searches nothing"):
        confirm.create(chain.database, chain.confirmation, 2, 3)
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(SMALL, "small.toml"), "small")
        with pytest.raises(UsageError, match="no trial has completed"):
            confirm.create(database, load_study(database, "small"), 2, 3)


def test_the_confirmation_of_another_study_of_that_name_is_refused(chain: Chain, tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(SMALL, "small.toml"), "small")
        create_study(database, chain.confirmation.spec, "small-confirm")
        with pytest.raises(StorageError, match="does not confirm the study small; create"):
            confirm.find(database, load_study(database, "small"))
        link = {confirm.LINK_KEY: json.dumps(confirm.link_of(chain.confirmation))}
        create_study(database, parse(SMALL, "small.toml"), "other")
        create_study(database, chain.confirmation.spec, "other-confirm", attributes=link)
        with pytest.raises(StorageError, match="does not confirm the study other; create"):
            confirm.find(database, load_study(database, "other"))
        optuna.delete_study(study_name="small-confirm", storage=load_study(database, "small").optuna_study._storage)
        create_study(database, chain.confirmation.spec, "small-confirm", attributes=link)
        with pytest.raises(StorageError, match="does not confirm this study small, but an earlier one of that name"):
            confirm.find(database, load_study(database, "small"))
    assert confirm.find(chain.database, chain.search) is not None


def test_a_configuration_leaves_out_seeds_and_what_is_absent() -> None:
    found = configuration(Recipe("lenet", 3, seed=4, stream_seed=5, stream_offset=6))
    assert not {"seed", "stream_seed", "stream_offset", "model", "peak_learning_rate", "dropout"} & found.keys()
    assert found["epochs"] == 3


def test_a_configuration_keeps_the_precision_it_was_found_with() -> None:
    assert configuration(Recipe("lenet", 3, precision="bfloat16"))["precision"] == "bfloat16"
    assert Recipe("lenet", **configuration(Recipe("lenet", 3))).precision == "float32"


def test_a_study_recorded_under_another_name_has_a_confirmation_of_its_own(chain: Chain) -> None:
    """Two studies from one file, as --study-name makes them; names may hold what file names may not."""
    for name in ("small again", "small/2"):
        create_study(chain.database, chain.search.spec, name, 2)
        chain.work(name)
        study = load_study(chain.database, name)
        made = confirm.create(chain.database, study, 1, 2)
        assert made.name == f"{name}-confirm"
        found = confirm.find(chain.database, study)
        assert found is not None
        assert (found.name, confirm.link_of(found)["study"]) == (made.name, name)
        assert name in made.spec.description
    assert confirm.find(chain.database, chain.search) is not None


def test_trials_beyond_the_seeds_belong_to_no_candidate(sqlite: Database) -> None:
    """`hpsearch extend` gives each a seed of its own, so that they cannot be compared."""
    create_study(sqlite, parse(CANDIDATES, "three.toml"), "three")
    study = load_study(sqlite, "three")
    for number in range(18):
        study.optuna_study.add_trial(optuna.trial.create_trial(value=number / 100))
    for number, one in enumerate(sorted(confirm.result(study).standings, key=lambda one: one.number)):
        assert [trial.value for trial in confirm.groups(study)[number].trials] == list(one.values)


def test_a_seed_that_not_all_in_the_race_have_counts_for_none(sqlite: Database) -> None:
    """Neither in the ranking nor for what is tested and exported."""
    create_study(sqlite, parse(CANDIDATES, "three.toml"), "three")
    study = load_study(sqlite, "three")
    for value in (0.5, 0.4, 0.45, 0.5, 0.4, 0.45, 0.9):  # the first candidate is ahead by a seed
        study.optuna_study.add_trial(optuna.trial.create_trial(value=value))
    (first,) = [one for one in confirm.result(study).standings if one.number == 0]
    assert first.values == (0.5, 0.5)
    assert [trial.value for trial in confirm.groups(study)[0].trials] == [0.5, 0.5]
