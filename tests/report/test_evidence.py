"""What a page says of evidence: of seeds that were lost, of tests of other networks, of looks recorded elsewhere."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import update

from hpsearch import confirm
from hpsearch.arms import KIND
from hpsearch.claims import _test
from hpsearch.recipe import Recipe
from hpsearch.report.evidence_figures import confirmed, table_one, transferred
from hpsearch.report.gather import gather
from hpsearch.report.page import across, facts_of
from hpsearch.report.samples import samples
from hpsearch.spec import parse
from hpsearch.storage import openings
from hpsearch.storage.open import Database
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.storage.tables import STUDIES
from hpsearch.trained import Chosen
from tests.chain import Chain, make
from tests.studies import CANDIDATES

LOST = [0.5, 0.4, None, 0.5, None, None]  # of two seeds of three candidates; None: diverged


def filled(database: Database, link: Mapping[str, Any]) -> None:
    """The study `three`, of three candidates over two seeds: one has all, one half, one none."""
    create_study(
        database,
        parse(CANDIDATES.replace("seeds = 5", "seeds = 2"), "three.toml"),
        "three",
        attributes={confirm.LINK_KEY: json.dumps(link)},
    )
    study = load_study(database, "three")
    for number, value in enumerate(LOST):
        candidate, block = study.spec.place(number)
        recipe = study.spec.recipe({}, study.spec.seeds[block], 0, candidate)
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        ended = optuna.trial.create_trial(state=state, value=value, user_attrs={RECIPE_KEY: recipe.as_dict()})
        study.optuna_study.add_trial(ended)


def test_seeds_that_were_lost_stand_in_the_tables(sqlite: Database) -> None:
    filled(sqlite, {})
    study = gather(sqlite, "three")
    table = table_one(study)
    good, half, none = study.labels
    assert [row[:3] for row in table.rows] == [[good, 2, 0], [half, 1, 1], [none, 0, 1]]  # the race spares the last one
    assert "1 of 2; 1 diverged or failed" in table.html
    assert "0 of 2; 1 diverged or failed" in table.html
    caption = confirmed(study).caption
    assert "the best of 3" in caption
    assert f"Without a value: {study.labels[2]}, out after 1 seed (a trial diverged or failed)" in caption


def test_seeds_that_were_lost_stand_in_a_transfer(sqlite: Database) -> None:
    filled(sqlite, {"kind": KIND, "layers": []})
    figure = transferred([gather(sqlite, "three")], "key")
    labels = gather(sqlite, "three").labels
    assert [row[2:5] for row in figure.rows] == [[labels[0], 2, 0], [labels[1], 1, 1]]
    assert f"Not of all seeds: {labels[1]}, 1 of 2 seeds; 1 diverged or failed" in figure.caption
    assert f"{labels[2]}, 0 of 2 seeds; 2 diverged or failed" in figure.caption


def test_a_test_belongs_to_the_networks_that_were_tested(sqlite: Database) -> None:
    """Not to the candidate of that name in a later confirmation."""
    filled(sqlite, {})
    study = load_study(sqlite, "three")
    first = Recipe(**study.optuna_study.trials[0].user_attrs[RECIPE_KEY])
    label = gather(sqlite, "three").labels[0]
    estimate = {"num": 2, "mean": 0.75, "std": 0.1, "low": 0.7, "high": 0.8}
    result = {"label": label, "configuration": confirm.configuration(first), "seeds": list(study.spec.seeds)}
    result |= dict.fromkeys(("accuracy", "macro_f1", "calibration_error"), estimate)
    openings.begin(sqlite, study, 0, {"time": "earlier", "results": [result], "result": result})
    found = gather(sqlite, "three")
    assert (table_one(found).rows[0][3], found.tested_otherwise) == (0.75, ())
    for change in ({"seeds": [77, 78]}, {"configuration": {**result["configuration"], "learning_rate": 7.0}}):
        other = {**result, **change}
        record = {"time": "earlier", "results": [other], "result": other}
        openings.complete(sqlite, study, 0, record)
        found = gather(sqlite, "three")
        assert (table_one(found).rows[0][3], found.tested_otherwise) == (None, (label,))
        assert f"Tested before, with other seeds or values: {label}." in table_one(found).caption
        chosen = Chosen(label, study, confirm.groups(study)[0].trials, True)
        assert _test(chosen, [record]) is None
    openings.complete(sqlite, study, 0, {"time": "earlier", "results": [result], "result": result})
    assert _test(chosen, openings.openings(sqlite, study)) is not None


def test_the_split_of_a_confirmation_is_sealed_as_that_of_its_search(sqlite: Database, tmp_path: Path) -> None:
    chain = make(sqlite, tmp_path, [("epochs = 3", "epochs = 1")])

    def said(name: str) -> str:
        return dict(facts_of(gather(sqlite, name)))["test split"]

    assert (said("small"), said("small-confirm")) == ("sealed", "sealed")
    openings.begin(sqlite, chain.search, 0, {"time": "earlier", "again": None, "data": "digits:0-4"})
    assert said("small") == "opened once, without a result"
    assert said("small-confirm") == "see the study that this one confirms"
    with sqlite.engine.begin() as connection:
        connection.execute(update(STUDIES).where(STUDIES.c.study_name == "small").values(study_name="gone"))
    assert said("small-confirm") == "unknown, as the study that this one confirms is not there"


def test_tests_of_other_images_are_not_drawn_together(whole: Chain, sqlite: Database, tmp_path: Path) -> None:
    study = gather(whole.database, "small")
    assert "side by side" in across([study, replace(study, name="other")])[0].title
    other = replace(study, name="other", tested=({**study.tested[0], "test_fingerprint": "other"},))
    assert across([study, other]) == []
    old = {key: value for key, value in study.tested[0].items() if key != "test_fingerprint"}
    assert len(across([study, replace(study, name="other", tested=(old,))])) == 1
    assert across([study, replace(study, name="other", tested=({**old, "data": "folder:x"},))]) == []


def test_images_that_no_trial_saw_are_not_shown(whole: Chain, tmp_path: Path) -> None:
    study = gather(whole.database, "small")
    assert study.images is not None
    assert samples(study, whole.settings).rows
    assert "here has other images than those" in samples(replace(study, images="other"), whole.settings).caption
