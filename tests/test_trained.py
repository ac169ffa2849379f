"""The networks that trials have trained: only those that give what is recorded, and only when they may be chosen."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.trial import TrialState
from safetensors.torch import load, save

from hpsearch import confirm
from hpsearch.cli.final_test import final_test as command
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.export import export
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.statistics import of_planned
from hpsearch.storage import openings
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.storage.tables import VALUES
from hpsearch.train.program import EpochResult
from hpsearch.trained import choose, data_of, network, same_loss
from hpsearch.trial import Outcome, Run
from hpsearch.verify import verify
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


def test_seeds_that_are_not_there_are_told(
    sqlite: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of those that are left is the mean of the better ones: record, table, metrics.json and card say so."""
    outcome, first, last = Run.outcome, tmp_path / "first", tmp_path / "last"

    def moody(trial: Run, result: EpochResult, pruned: bool) -> Outcome | None:
        return outcome(trial, replace(result, diverged=result.diverged or trial.number in (1, 3)), pruned)

    monkeypatch.setattr(Run, "outcome", moody)
    create_study(sqlite, parse(PLAIN.replace("seeds = 2", "seeds = 5"), "plain.toml"), "plain")
    list(run(sqlite, "plain", settings, Interruption(), 3))
    said: list[str] = []
    study = load_study(sqlite, "plain")
    early = export(sqlite, study, 1, first, settings, said.append).confirmation
    assert early is not None
    assert (early.planned, early.lost, early.seeds) == (5, 1, [0, 2])
    assert said == [
        "study plain: 3 of its 5 trials have ended, and the evidence is of these alone; `hpsearch worker plain` trains "
        "the others"
    ]
    list(run(sqlite, "plain", settings, Interruption()))
    export(sqlite, load_study(sqlite, "plain"), 1, last, settings, said.append)
    assert len(said) == 1
    assert "| validation_accuracy over 3 of 5 new seeds; 2 diverged or failed |" in (last / "README.md").read_text()
    assert len(verify(last, settings)) == 7
    result = final_test(sqlite, load_study(sqlite, "plain"), settings, None, silent)["result"]
    assert (result["planned"], result["lost"], result["seeds"]) == (5, 2, [0, 2, 4])
    storage = str(sqlite.engine.url)
    shown = CliRunner().invoke(command, ["plain", "--show", "--storage", storage])
    assert "plain: 3 of 5 seeds; 2 diverged or failed\n" in shown.output


def test_an_export_of_before_says_nothing_of_seeds_that_are_not_there() -> None:
    assert of_planned(3, None, 0) == of_planned(3, 3, 0) == "3 seeds"
    assert of_planned(3, 5, 0) == "3 of 5 seeds"


def test_what_a_race_ended_is_not_lost(sqlite: Database) -> None:
    """Nor what it did not train any more of a candidate of which a trial diverged."""
    table = '[[candidate]]\nlabel = "A"\n[[candidate]]\nlabel = "B"\nhidden_width = 8\n[[candidate]]\nlabel = "C"\n'
    text = PLAIN.replace("seeds = 2", "seeds = 4") + '[pruner]\nname = "race"\n' + table + "hidden_width = 4\n"
    create_study(sqlite, parse(text, "plain.toml"), "plain")
    study = load_study(sqlite, "plain")
    for row in ((0.9, 0.1, 0.8), (0.92, 0.11, None), (0.91, 0.12, None), (0.9, None, None)):
        for value in row:
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            study.optuna_study.add_trial(optuna.trial.create_trial(state=state, value=value))
    found = {one.label: (len(one.trials), one.planned, one.lost) for one in choose(sqlite, study, confirmed=False)}
    assert found == {"A": (4, 4, 0), "B": (3, 4, 0), "C": (1, 4, 1)}


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
