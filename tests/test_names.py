"""Names that are made from other names fit, and tell apart what those told apart."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpsearch import catalogue, confirm
from hpsearch.form import LONGEST_NAME
from hpsearch.model_card import config
from hpsearch.names import derived
from hpsearch.recipe import Recipe
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study
from tests.chain import Chain


def test_a_name_that_fits_is_kept_and_a_longer_one_is_told_from_others() -> None:
    assert derived("small", "-confirm") == "small-confirm"
    assert derived("x" * 192, "-confirm") == "x" * 192 + "-confirm"
    one, other = (derived("x" * 196 + end, "-confirm") for end in "ab")
    assert one != other
    for name in (one, other):
        assert len(name) == LONGEST_NAME
        assert name.startswith("x" * 150)
        assert name.endswith("-confirm")


@pytest.mark.parametrize("letters", [195, LONGEST_NAME])
def test_a_study_of_a_long_name_is_confirmed_and_exported(
    letters: int, sqlite: Database, chain: Chain, tmp_path: Path
) -> None:
    name = "x" * letters
    spec = replace(chain.search.spec, name=name)
    create_study(sqlite, spec, name)
    study = load_study(sqlite, name)
    for trial in chain.search.optuna_study.get_trials():
        study.optuna_study.add_trial(trial)
    made = confirm.create(sqlite, study, 1, 2)
    found = confirm.find(sqlite, study)
    assert found is not None
    assert found.name == made.name
    text = config(spec, Recipe("lenet", 3))
    (tmp_path / "config.toml").write_text(text)
    again = catalogue.read(str(tmp_path / "config.toml"))
    assert f"hpsearch worker {again.name}\n" in text
