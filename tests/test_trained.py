"""The networks that trials have trained: only those that give what is recorded, and only when they may be chosen."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import load, save

from hpsearch import confirm
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.export import export
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import openings
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.storage.tables import VALUES
from hpsearch.trained import choose, data_of, network, same_loss
from hpsearch.worker import run
from tests.chain import SMALL, Chain, silent

PLAIN = """
name = "plain"
seeds = 2
[model]
name = "2lp"
[data]
name = "digits:0-4"
image_size = 8
[training]
epochs = 1
hidden_width = 16
"""


def made(database: Database, settings: Settings, text: str = PLAIN) -> LoadedStudy:
    """A study over seeds that has ended."""
    create_study(database, parse(text, "plain.toml"), "plain")
    list(run(database, "plain", settings, Interruption()))
    return load_study(database, "plain")


def test_a_network_of_another_loss_is_no_evidence(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    study = made(sqlite, settings, PLAIN + '[objective]\nmetric = "validation_loss"\n')
    elsewhere = replace(settings, home=tmp_path / "elsewhere")
    (first, _) = study.optuna_study.get_trials(deepcopy=False)
    found = network(study, first, data_of(study, elsewhere), elsewhere, silent)  # trained once more
    assert found.loss == pytest.approx(first.value)
    with sqlite.engine.begin() as connection:
        connection.execute(VALUES.update().values(value=VALUES.c.value * 0.9))
    sqlite.close()
    changed = load_study(sqlite, "plain")
    for place in (elsewhere, replace(settings, home=tmp_path / "third")):  # its kept weights, and without any
        (first, _) = changed.optuna_study.get_trials()
        first.value = found.loss * 0.9
        with pytest.raises(HpsearchError, match=r"a validation loss of .* bring .* from the machine that trained it"):
            network(changed, first, data_of(changed, place), place, silent)


@pytest.mark.parametrize(("metric", "worse"), [("validation_accuracy", 0.2), ("validation_loss", 0.3)])
def test_of_two_seeds_the_worse_one_is_in_the_middle(
    metric: str, worse: float, sqlite: Database, settings: Settings
) -> None:
    text = PLAIN.replace("seeds = 2", "seeds = 4") + f'[objective]\nmetric = "{metric}"\n'
    create_study(sqlite, parse(text, "plain.toml"), "plain")
    study = load_study(sqlite, "plain")
    for value in (0.4, 0.2, 0.3, 0.1):
        study.optuna_study.add_trial(optuna.trial.create_trial(value=value))
    assert choose(sqlite, study, confirmed=False)[0].middle.value == worse


def test_losses_are_the_same_up_to_rounding() -> None:
    assert same_loss(1.2345678, 1.2345701)
    assert same_loss(0.0, 3e-6)
    assert not same_loss(1.23, 1.25)


def test_wrong_kept_weights_are_noticed_before_the_seal_is_opened(sqlite: Database, settings: Settings) -> None:
    study = made(sqlite, settings)
    kept = open_checkpoints(settings.weights)
    for file in Path(settings.weights).glob("*/*.safetensors"):
        others = {name: torch.zeros_like(tensor) for name, tensor in load(file.read_bytes()).items()}
        file.unlink()
        kept.save(file.parent.name, 0, save(others))
    with pytest.raises(HpsearchError, match=f"bring its own to {settings.weights} from"):
        final_test(sqlite, study, settings, None, silent)
    assert openings.openings(sqlite, study) == []


def test_a_confirmation_that_has_not_ended_is_not_exported_under_its_own_name(
    chain: Chain, sqlite: Database, tmp_path: Path
) -> None:
    attributes = {confirm.LINK_KEY: chain.confirmation.optuna_study.user_attrs[confirm.LINK_KEY]}
    create_study(sqlite, chain.confirmation.spec, "small-confirm", attributes=attributes)
    study = load_study(sqlite, "small-confirm")
    study.optuna_study.add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(UsageError, match=r"not finished; run `hpsearch worker small-confirm` first"):
        export(sqlite, study, 1, tmp_path / "out", chain.settings, silent)
    for _ in range(len(study.spec.candidates)):
        study.optuna_study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    create_study(sqlite, chain.confirmation.spec, "lost", attributes=attributes)
    lost = load_study(sqlite, "lost")
    for _ in study.spec.candidates:
        lost.optuna_study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    with pytest.raises(UsageError, match="nothing is confirmed"):
        export(sqlite, lost, 1, tmp_path / "out", chain.settings, silent)


def test_of_candidates_that_are_all_lost_none_is_tested(sqlite: Database, settings: Settings) -> None:
    create_study(
        sqlite, parse(PLAIN + '[[candidate]]\nlabel = "A"\n[[candidate]]\nlabel = "B"\nhidden_width = 8\n', "p"), "p"
    )
    study = load_study(sqlite, "p")
    for state in ("FAIL", "COMPLETE", "COMPLETE", "FAIL"):
        value = 0.5 if state == "COMPLETE" else None
        study.optuna_study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState[state], value=value))
    with pytest.raises(UsageError, match="no candidate is left"):
        final_test(sqlite, study, settings, None, silent)
    assert openings.openings(sqlite, study) == []


def test_trials_that_others_have_added_are_not_exported(chain: Chain, sqlite: Database, tmp_path: Path) -> None:
    create_study(sqlite, chain.search.spec, "small")
    study = load_study(sqlite, "small")
    study.optuna_study.add_trial(optuna.trial.create_trial(value=float("inf")))
    with pytest.raises(UsageError, match="no trial has completed yet"):
        choose(sqlite, study, confirmed=False)
    own = chain.search.optuna_study.trials[1]
    recorded = {"hpsearch:recipe": own.user_attrs["hpsearch:recipe"]}
    study.optuna_study.add_trial(optuna.trial.create_trial(value=own.value, user_attrs=recorded))
    metrics = export(sqlite, study, 1, tmp_path / "out", chain.settings, silent)
    assert metrics.search is not None
    assert (metrics.weights.trial, metrics.search.best_value) == (2, own.value)


def test_a_search_that_went_on_after_it_was_confirmed_is_told_of(chain: Chain, sqlite: Database) -> None:
    said: list[str] = []
    create_study(sqlite, parse(SMALL, "small.toml"), "small")
    study = load_study(sqlite, "small")
    recorded = {"hpsearch:recipe": chain.search.optuna_study.trials[1].user_attrs["hpsearch:recipe"]}
    study.optuna_study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=recorded))
    confirming = confirm.create(sqlite, study, 1, 2)
    for value in (0.6, 0.4) * 4:
        confirming.optuna_study.add_trial(optuna.trial.create_trial(value=value))
    choose(sqlite, study, say=said.append)
    study.optuna_study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=recorded))
    choose(sqlite, study, say=said.append)
    assert said == []
    study.optuna_study.add_trial(optuna.trial.create_trial(value=0.7, user_attrs=recorded))
    for asked in (study, confirming):
        choose(sqlite, asked, say=said.append)
    number = study.optuna_study.trials[-1].number
    assert said == [said[0]] * 2
    assert f"study small: trial {number} (0.7000) has completed since it was confirmed" in said[0]
    assert "0.5000" in said[0]
