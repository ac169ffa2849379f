"""fsck: a clean study has no finding; every kind of damage, made with plain SQL, is found, repaired or explained."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import fleet, ledger
from hpsearch.storage.events import events
from hpsearch.storage.fsck import Report, run
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.ledger import Report as Epoch
from hpsearch.storage.open import create
from hpsearch.storage.studies import create_study, load_study, progress
from hpsearch.storage.tables import METRICS
from hpsearch.worker import Limits, serve
from tests.sessions import take
from tests.storage.sandbox import ABANDONED, COMPLETE, DONE, PRUNED, Sandbox, kinds
from tests.studies import TINY


def test_a_clean_study_has_no_finding(sandbox: Sandbox) -> None:
    assert sandbox.fsck() == Report(6, (), ())
    assert sandbox.fsck(mend=True) == Report(6, (), ())
    assert [event["kind"] for event in events(sandbox.database, sandbox.study.study_id)] == ["released"]


def test_a_study_that_workers_have_trained_has_no_finding(storage_url: str, tmp_path: Path) -> None:
    settings = Settings(storage_url, tmp_path, None, "cpu", checkpoint_seconds=0.0)
    text = TINY.replace("low = 1e-3, high = 1e-1, log = true", "choices = [1e30, 0.01, 0.02]").split("[[first]]")[0]
    with create(storage_url) as database:
        create_study(database, parse(text, "tiny.toml"), "tiny")  # some of its trials diverge
        list(serve(database, "tiny", settings, Interruption(), Limits(max_trials=4)))
        study = load_study(database, "tiny")
        assert run(database, study, settings.checkpoints, mend=False) == Report(4, (), ())


MENDED: dict[str, tuple[str, Sequence[str]]] = {
    "a number twice": ("number", ["UPDATE trials SET number = 1 WHERE trial_id = {2}"]),
    "a negative number": ("number", ["UPDATE trials SET number = -1 WHERE trial_id = {5}"]),
    "numbers with a gap": ("number", ["UPDATE trials SET number = 7 WHERE trial_id = {5}"]),
    "no row of control": ("budget", ["DELETE FROM hpsearch_control"]),
    "RUNNING without a lease": ("lease", ["DELETE FROM hpsearch_leases WHERE trial_id = {4}"]),
    "WAITING without a lease": ("lease", ["DELETE FROM hpsearch_leases WHERE trial_id = {5}"]),
    "COMPLETE without a lease": ("lease", ["DELETE FROM hpsearch_leases WHERE trial_id = {0}"]),
    "a lease behind": ("lease", ["UPDATE hpsearch_leases SET epoch = 1 WHERE trial_id = {0}"]),
    "a lease ahead": ("lease", ["UPDATE hpsearch_leases SET epoch = 3 WHERE trial_id = {4}"]),
    "COMPLETE without a value": ("value", ["DELETE FROM trial_values WHERE trial_id = {0}"]),
    "COMPLETE with another value": ("value", ["UPDATE trial_values SET value = 0.25 WHERE trial_id = {0}"]),
    "PRUNED without a value": ("value", ["DELETE FROM trial_values WHERE trial_id = {2}"]),
    "PRUNED with another value": ("value", ["UPDATE trial_values SET value = 0.25 WHERE trial_id = {2}"]),
    "RUNNING with a value": ("value", ["UPDATE trial_values SET trial_id = {4} WHERE trial_id = {0}"]),
    "an epoch that Optuna's table lacks": (
        "curve",
        ["DELETE FROM trial_intermediate_values WHERE trial_id = {0} AND step = 2"],
    ),
    "a last epoch that Optuna's table lacks": (
        "curve",
        ["DELETE FROM trial_intermediate_values WHERE trial_id = {0} AND step = 3"],
    ),
    "an epoch that our table lacks": ("curve", ["DELETE FROM hpsearch_epochs WHERE trial_id = {2} AND epoch = 1"]),
    "our table lost": ("curve", ["DELETE FROM hpsearch_epochs WHERE trial_id = {0}"]),
    "Optuna's table lost": ("curve", ["DELETE FROM trial_intermediate_values WHERE trial_id = {2}"]),
    "a gap in a curve that goes on": (
        "curve",
        [
            "DELETE FROM hpsearch_epochs WHERE trial_id = {4} AND epoch = 1",
            "DELETE FROM trial_intermediate_values WHERE trial_id = {4} AND step = 1",
        ],
    ),
    "two values in a curve that goes on": (
        "curve",
        ["UPDATE hpsearch_epochs SET validation_accuracy = 0.25 WHERE trial_id = {5} AND epoch = 2"],
    ),
    "a lost value in a curve that goes on": (
        "curve",
        [
            "UPDATE hpsearch_epochs SET validation_accuracy = NULL WHERE trial_id = {5} AND epoch = 2",
            "DELETE FROM trial_intermediate_values WHERE trial_id = {5} AND step = 2",
        ],
    ),
    "an epoch 0 in a curve that goes on": (
        "curve",
        ["UPDATE trial_intermediate_values SET step = 0 WHERE trial_id = {4} AND step = 1"],
    ),
    "an epoch beyond the recipe in a curve that goes on": (
        "curve",
        [
            "UPDATE hpsearch_epochs SET epoch = 9 WHERE trial_id = {4} AND epoch = 2",
            "UPDATE trial_intermediate_values SET step = 9 WHERE trial_id = {4} AND step = 2",
        ],
    ),
    "no recipe": ("recipe", ["DELETE FROM trial_user_attributes WHERE trial_id = {0} AND key = 'hpsearch:recipe'"]),
    "an unreadable recipe": (
        "recipe",
        ["UPDATE trial_user_attributes SET value_json = '[' WHERE trial_id = {1} AND key = 'hpsearch:recipe'"],
    ),
    "another recipe": (
        "recipe",
        [
            "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"epochs\": 3', '\"epochs\": 4') "
            "WHERE trial_id = {1} AND key = 'hpsearch:recipe'"
        ],
    ),
    "no parameters": ("recipe", ["DELETE FROM trial_params WHERE trial_id = {1}"]),
    "a parameter missing": (
        "recipe",
        ["DELETE FROM trial_params WHERE trial_id = {1} AND param_name = 'learning_rate'"],
    ),
    "another parameter": (
        "recipe",
        ["UPDATE trial_params SET param_value = 0.05 WHERE trial_id = {1} AND param_name = 'learning_rate'"],
    ),
    "a choice that does not exist": (
        "recipe",
        ["UPDATE trial_params SET param_value = 7 WHERE trial_id = {1} AND param_name = 'optimizer'"],
    ),
    "an unreadable distribution": (
        "recipe",
        ["UPDATE trial_params SET distribution_json = 'x' WHERE trial_id = {1} AND param_name = 'optimizer'"],
    ),
    "neither recipe nor parameters, and it goes on": (
        "recipe",
        [
            "DELETE FROM trial_user_attributes WHERE trial_id = {4} AND key = 'hpsearch:recipe'",
            "DELETE FROM trial_params WHERE trial_id = {4}",
        ],
    ),
    "a configuration that is not taken up": (
        "configuration",
        ["DELETE FROM hpsearch_configurations WHERE trial_id = {1}"],
    ),
    "a configuration taken up for another trial": (
        "configuration",
        ["UPDATE hpsearch_configurations SET trial_id = {0} WHERE trial_id = {1}"],
    ),
    "a configuration that no trial has": (
        "configuration",
        ["UPDATE hpsearch_configurations SET digest = 'x' WHERE trial_id = {1}"],
    ),
    "rows without their trial": ("orphan", ["UPDATE hpsearch_epochs SET trial_id = 4711 WHERE trial_id = {3}"]),
    "an event without its trial": ("orphan", ["UPDATE hpsearch_events SET trial_id = 4711"]),
    "rows of Optuna without their trial": (
        "orphan",
        ["INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (4711, 'a', '1')"],
    ),
    "Optuna's rows without their study": (
        "orphan",
        [
            "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (4711, 'a', '1')",
            "INSERT INTO trials (trial_id, study_id, number, state) VALUES (4712, 4711, 0, 'RUNNING')",
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (4712, 'a', '1')",
        ],
    ),
    "control without its study": (
        "orphan",
        ["INSERT INTO hpsearch_control (study_id, state, max_trials) VALUES (4711, 'running', 1)"],
    ),
}


@pytest.mark.parametrize("damage", MENDED)
def test_damage_is_found_and_mended(sandbox: Sandbox, damage: str) -> None:
    kind, statements = MENDED[damage]
    before = sandbox.trials()
    sandbox.sql(*statements)
    found = sandbox.fsck()
    assert kind in kinds(found)
    assert all(finding.does and not finding.why_not for finding in found.left), found.left
    assert sandbox.fsck() == found  # checking changes nothing
    mended = sandbox.fsck(mend=True)
    assert kind in [finding.kind for finding in mended.repaired]
    assert mended.left == ()
    assert mended.ok
    assert sandbox.fsck().left == ()
    assert "repaired" in [event["kind"] for event in events(sandbox.database, sandbox.study.study_id)]
    after = sandbox.trials()
    for number in (COMPLETE, DONE, PRUNED):  # what had ended is as it was, numbers apart
        one = next(trial for trial in after if trial._trial_id == sandbox.ids[number])
        for name in ("state", "values", "params", "distributions", "user_attrs", "intermediate_values"):
            assert getattr(one, name) == getattr(before[number], name), name
    check_it_goes_on(sandbox)


def check_it_goes_on(sandbox: Sandbox) -> None:
    """Workers finish the study, exactly, and then fsck still finds nothing."""
    sandbox.sql("UPDATE hpsearch_leases SET expires = 0")
    settings = Settings(sandbox.url, Path(sandbox.place).parent, None, "cpu")
    list(serve(sandbox.database, "tiny", settings, Interruption(), Limits()))
    trials = sandbox.trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.state.is_finished() for trial in trials)
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
    assert sandbox.fsck().left == ()


LEFT: dict[str, tuple[str, Sequence[str], str]] = {
    "more trials than the budget": ("budget", ["UPDATE hpsearch_control SET max_trials = 3"], "hpsearch extend tiny"),
    "an unknown state": ("budget", ["UPDATE hpsearch_control SET state = 'asleep'"], "hpsearch resume tiny"),
    "a gap in a curve that has ended": (
        "curve",
        [
            "DELETE FROM hpsearch_epochs WHERE trial_id = {0} AND epoch = 2",
            "DELETE FROM trial_intermediate_values WHERE trial_id = {0} AND step = 2",
        ],
        "not made up",
    ),
    "two values in a curve that has ended": (
        "curve",
        ["UPDATE hpsearch_epochs SET validation_accuracy = 0.25 WHERE trial_id = {0} AND epoch = 1"],
        "not made up",
    ),
    "an epoch 0 in a curve that has ended": (
        "curve",
        ["UPDATE hpsearch_epochs SET epoch = 0 WHERE trial_id = {2} AND epoch = 1"],
        "not made up",
    ),
    "COMPLETE without its last epoch": (
        "value",
        [
            "DELETE FROM hpsearch_epochs WHERE trial_id = {0} AND epoch = 3",
            "DELETE FROM trial_intermediate_values WHERE trial_id = {0} AND step = 3",
            "UPDATE hpsearch_leases SET epoch = 2 WHERE trial_id = {0}",
        ],
        "ended past hpsearch",
    ),
    "neither recipe nor parameters of what has ended": (
        "recipe",
        [
            "DELETE FROM trial_user_attributes WHERE trial_id = {1} AND key = 'hpsearch:recipe'",
            "DELETE FROM trial_params WHERE trial_id = {1}",
            "DELETE FROM hpsearch_configurations WHERE trial_id = {1}",
        ],
        "nothing else tells",
    ),
    "parameters and recipe differ and no digest decides": (
        "recipe",
        [
            "UPDATE trial_params SET param_value = 0.05 WHERE trial_id = {1} AND param_name = 'learning_rate'",
            "UPDATE hpsearch_configurations SET digest = 'x' WHERE trial_id = {1}",
        ],
        "nothing else tells",
    ),
}


@pytest.mark.parametrize("damage", LEFT)
def test_what_cannot_be_mended_is_left_and_explained(sandbox: Sandbox, damage: str) -> None:
    kind, statements, why = LEFT[damage]
    sandbox.sql(*statements)
    before = sandbox.trials()
    assert not sandbox.fsck().ok
    report = sandbox.fsck(mend=True)
    assert not report.ok
    assert kind in kinds(report)
    assert why in next(finding.why_not for finding in report.left if finding.kind == kind)
    assert sandbox.trials() == before
    assert sandbox.fsck().left == report.left


def test_a_budget_of_epochs(sandbox: Sandbox) -> None:
    study = load_study(sandbox.database, "tiny")
    tables = json.loads(study.spec.to_json())
    tables["budget"]["epochs"] = 12
    text = json.dumps(json.dumps(tables)).replace("{", "{{").replace("}", "}}")
    sandbox.sql(f"UPDATE study_user_attributes SET value_json = '{text}' WHERE key = 'hpsearch:spec'")
    with create(sandbox.url) as database:
        report = run(database, load_study(database, "tiny"), sandbox.place, mend=True)
    assert [finding.sentence for finding in report.left] == ["13 epochs are recorded, its budget is 12"]


def test_several_kinds_of_damage_at_once(sandbox: Sandbox) -> None:
    sandbox.sql(
        "UPDATE trials SET number = 1 WHERE trial_id = {0}",
        "DELETE FROM trial_values WHERE trial_id = {0}",
        "DELETE FROM trial_intermediate_values WHERE trial_id = {0} AND step = 3",
        "DELETE FROM hpsearch_leases WHERE trial_id IN ({0}, {4})",
        "DELETE FROM trial_user_attributes WHERE trial_id IN ({0}, {2}) AND key = 'hpsearch:recipe'",
        "DELETE FROM hpsearch_control",
    )
    report = sandbox.fsck(mend=True)
    assert len(report.repaired) == 8  # one for each, and the value after its curve
    assert report.left == ()
    check_it_goes_on(sandbox)


def test_a_deleted_trial_leaves_a_gap_that_is_said_to_be_one(sandbox: Sandbox) -> None:
    for table in ("trial_values", "trial_intermediate_values", "trial_params", "trial_user_attributes"):
        sandbox.sql(f"DELETE FROM {table} WHERE trial_id = {{1}}")
    sandbox.sql("DELETE FROM trials WHERE trial_id = {1}")
    found = sandbox.fsck()
    assert "number" in kinds(found)
    assert sandbox.fsck(mend=True).left == ()
    lost = sandbox.trials()[1]
    assert (lost.state, lost.values, lost.params) == (TrialState.FAIL, None, {})
    assert "deleted past hpsearch" in lost.user_attrs[REASON_KEY]
    check_it_goes_on(sandbox)


def test_a_trial_that_is_being_trained_is_never_touched(sandbox: Sandbox) -> None:
    sandbox.report(sandbox.leases[ABANDONED], 2, seconds=3600.0)  # its worker is alive after all
    assert sandbox.fsck(mend=True) == Report(6, (), ())
    sandbox.sql(
        "DELETE FROM trial_intermediate_values WHERE trial_id = {4} AND step = 1",
        "UPDATE trials SET number = 3 WHERE trial_id = {4}",
    )
    report = sandbox.fsck(mend=True)
    assert [finding.kind for finding in report.repaired] == ["number"]  # the other trial 3 gets another number
    assert [finding.kind for finding in report.left] == ["curve"]
    assert "being trained now" in report.left[0].why_not
    trial = next(trial for trial in sandbox.trials() if trial._trial_id == sandbox.ids[ABANDONED])
    assert (trial.number, list(trial.intermediate_values)) == (3, [2])
    sandbox.report(sandbox.leases[ABANDONED], 3)  # and its worker may still write


def test_a_study_that_is_being_trained_looks_whole_at_every_moment(sandbox: Sandbox) -> None:
    lease, done = sandbox.leases[ABANDONED], threading.Event()

    def train() -> None:
        for _ in range(60):
            sandbox.report(lease, 3)
            ledger.cut_back(sandbox.database, lease, 2)
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    checked = 0
    while not done.is_set():
        assert sandbox.fsck() == Report(6, (), ())
        checked += 1
    thread.join()
    assert checked > 3


def test_whoever_lost_a_trial_that_was_mended_cannot_write_about_it(sandbox: Sandbox) -> None:
    sandbox.sql("DELETE FROM hpsearch_epochs WHERE trial_id = {4} AND epoch = 2")
    assert len(sandbox.fsck(mend=True).repaired) == 1
    one = Epoch(sandbox.leases[ABANDONED], 3, 0.5, dict.fromkeys(METRICS, 0.5), 1.0)
    assert ledger.report(sandbox.database, [one], 60.0) == set()
    assert progress(sandbox.database, sandbox.study).abandoned == 1  # the next worker takes it


def test_a_double_that_a_person_ordered_is_a_note(sandbox: Sandbox) -> None:
    fleet.extend(sandbox.database, sandbox.study.study_id, 1)
    sandbox.study.optuna_study.enqueue_trial(sandbox.trials()[DONE].params)
    take(sandbox.session, 3)
    report = sandbox.fsck()
    assert report.ok
    assert [finding.sentence for finding in report.left] == [
        "trial 6: it has the configuration of trial 1; a person ordered it"
    ]


def test_a_double_that_nobody_ordered_is_damage(sandbox: Sandbox) -> None:
    fleet.extend(sandbox.database, sandbox.study.study_id, 1)
    sandbox.study.optuna_study.enqueue_trial(sandbox.trials()[DONE].params)
    take(sandbox.session, 3)
    sandbox.sql("DELETE FROM trial_system_attributes WHERE key = 'fixed_params'")
    report = sandbox.fsck(mend=True)
    assert kinds(report) == ["configuration"]
    assert "one too many" in report.left[0].why_not


def test_trials_that_are_not_hpsearchs_own(sandbox: Sandbox) -> None:
    fleet.extend(sandbox.database, sandbox.study.study_id, 2)
    take(sandbox.session, 2)  # what waits, so that `ask` makes a new one
    sandbox.study.optuna_study.ask()
    sandbox.study.optuna_study.add_trial(optuna.trial.create_trial(value=0.5))
    report = sandbox.fsck(mend=True)
    running, ended = report.left
    assert running.damage
    assert "--trial-number 6 --state fail" in running.why_not
    assert not ended.damage
    assert "was not trained by hpsearch" in ended.text
    sandbox.study.optuna_study.tell(6, state=TrialState.FAIL)
    assert sandbox.fsck().ok


def test_a_value_told_past_hpsearch_is_found(sandbox: Sandbox) -> None:
    sandbox.study.optuna_study.tell(ABANDONED, 0.125)
    report = sandbox.fsck()
    assert [finding.sentence for finding in report.left] == ["trial 4: it is COMPLETE after 2 of 3 epochs"]


def test_fail_without_a_reason_is_a_note(sandbox: Sandbox) -> None:
    sandbox.sql("DELETE FROM trial_user_attributes WHERE trial_id = {3} AND key = 'hpsearch:reason'")
    report = sandbox.fsck()
    assert report.ok
    assert [finding.kind for finding in report.left] == ["reason"]
