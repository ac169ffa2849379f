"""fsck around the tables: checkpoints, ten thousand trials, and the command."""

import json
from pathlib import Path

from hpsearch.artifacts import FolderCheckpoints, study_prefix, trial_key
from hpsearch.storage.fsck import Report
from hpsearch.storage.open import create
from hpsearch.trained import recipe_of
from tests.cli.running import hpsearch
from tests.storage.sandbox import ABANDONED, COMPLETE, WAITING, Sandbox


def test_checkpoints(sandbox: Sandbox) -> None:
    folder = FolderCheckpoints(Path(sandbox.place))
    prefix = study_prefix("tiny", sandbox.study.created)
    keys = {number: trial_key(prefix, number, "x") for number in (COMPLETE, ABANDONED, WAITING, 99)}
    for key in (*keys.values(), trial_key(study_prefix("other", ""), COMPLETE, "x")):
        folder.save(key, 1, b"one")
        folder.save(key, 2, b"two")
    next(iter((folder.folder / keys[WAITING]).glob("000002-*"))).write_bytes(b"three")
    found = sandbox.fsck()
    assert {finding.kind for finding in found.left} == {"checkpoint"}
    assert [(finding.trial, finding.damage) for finding in found.left] == [
        (COMPLETE, False),  # workers leave some for a moment
        (WAITING, True),
        (99, False),
    ]
    assert len(sandbox.fsck(mend=True).repaired) == 3
    assert sandbox.fsck() == Report(6, (), ())
    assert folder.keys("") == sorted([keys[ABANDONED], keys[WAITING], trial_key(study_prefix("other", ""), 0, "x")])
    assert list(folder.load(keys[WAITING], 9)) == [(1, b"one")]
    assert len(list(folder.load(keys[ABANDONED], 9))) == 2


def test_a_place_of_checkpoints_that_is_away_is_a_note(sandbox: Sandbox) -> None:
    sandbox.place = "gs://bucket"
    report = sandbox.fsck(mend=True)
    assert report.ok
    assert [finding.kind for finding in report.left] == ["checkpoint"]
    assert "not checked" in report.left[0].text


def test_ten_thousand_trials(sandbox: Sandbox) -> None:
    many = 10_000
    numbers = {
        "sqlite": f"WITH RECURSIVE n(i) AS (SELECT 6 UNION ALL SELECT i + 1 FROM n WHERE i < {many - 1}) "
        "SELECT i FROM n",
        "postgresql": f"SELECT i FROM generate_series(6, {many - 1}) AS g(i)",
    }[sandbox.database.engine.dialect.name]
    columns = "trial_id, state, datetime_start, datetime_complete"
    of = f"FROM ({numbers}) AS numbers, {{table}} AS t WHERE t.trial_id = {{{{1}}}}"
    new = "100000 + i"
    sandbox.sql("UPDATE hpsearch_control SET max_trials = 10000")
    sandbox.sql(
        f"INSERT INTO trials (number, study_id, {columns}) SELECT i, study_id, {new}, state, datetime_start, "
        f"datetime_complete {of.format(table='trials')}"
    )
    for table, copied in (
        ("trial_values", "objective, value, value_type"),
        ("trial_intermediate_values", "step, intermediate_value, intermediate_value_type"),
        ("trial_user_attributes", "key, value_json"),
        ("hpsearch_epochs", "epoch, validation_accuracy"),
        ("hpsearch_leases", "owner, token, expires, crashes, epoch, seconds"),
    ):
        sandbox.sql(f"INSERT INTO {table} (trial_id, {copied}) SELECT {new}, {copied} {of.format(table=table)}")
    sandbox.sql(
        "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) SELECT "
        f"{new}, param_name, param_value, distribution_json {of.format(table='trial_params')}"
    )
    report = sandbox.fsck()
    assert report.num_trials == many
    assert {finding.kind for finding in report.left} == {"configuration"}  # all copies train the same
    assert len(report.left) == many - 6


def test_the_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'storage' / 'hpsearch.db'}"
    with create(url) as database:
        sandbox = Sandbox(database, url, tmp_path / "storage")
        assert hpsearch(tmp_path, "fsck", "tiny").stdout == "study tiny: 6 trials, 0 repaired, 0 damaged\n"
        sandbox.sql("DELETE FROM trial_values WHERE trial_id = {0}", "UPDATE hpsearch_control SET state = 'asleep'")
        lines = hpsearch(tmp_path, "fsck", "tiny", code=1).stdout.splitlines()
        assert len(lines) == 3
        assert lines[1].startswith("damage: trial 0: it is COMPLETE with no value, its curve ends with 0.63")
        assert lines[1].endswith("(--repair believes the curve)")
        found = json.loads(hpsearch(tmp_path, "fsck", "tiny", "--repair", "--json", code=1).stdout)
        assert [(one["kind"], one["repaired"]) for one in found["findings"]] == [("value", True), ("budget", False)]
        sandbox.sql("UPDATE hpsearch_control SET state = 'running'")
        assert json.loads(hpsearch(tmp_path, "fsck", "tiny", "--json").stdout)["ok"]
    assert "did you mean" in hpsearch(tmp_path, "fsck", "tinny", code=2).stderr


def test_a_recipe_keeps_the_place_in_the_stream_where_its_trial_began(sandbox: Sandbox) -> None:
    """Neither parameters nor study know it, and a checkpoint is found by the whole recipe."""
    sandbox.sql(
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"stream_offset\": 0', "
        "'\"stream_offset\": 7') WHERE trial_id = {4} AND key = 'hpsearch:recipe'"
    )
    before = recipe_of(sandbox.trials()[ABANDONED])
    sandbox.sql(
        f"UPDATE trial_user_attributes SET value_json = replace(value_json, '{before.learning_rate}', '0.5') "
        "WHERE trial_id = {4} AND key = 'hpsearch:recipe'"
    )
    (finding,) = sandbox.fsck(mend=True).repaired
    assert finding.kind == "recipe"
    assert before.stream_offset == 7
    assert recipe_of(sandbox.trials()[ABANDONED]) == before


def test_rows_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    """A file that lost a bit, or that was written by hand."""
    url = f"sqlite:///{tmp_path / 'storage' / 'hpsearch.db'}"
    with create(url) as database:
        Sandbox(database, url, tmp_path / "storage").sql("UPDATE trials SET state = 'ODD' WHERE trial_id = {0}")
    copying = ("storage", "copy", url, f"sqlite:///{tmp_path / 'new.db'}")
    for command in (("fsck", "tiny"), ("fsck", "tiny", "--repair"), copying):
        assert "'ODD' is not among the defined enum values" in hpsearch(tmp_path, *command, code=1).stderr
    assert "restore a backup" in hpsearch(tmp_path, "fsck", "tiny", code=1).stderr
    assert not (tmp_path / "new.db").exists()
