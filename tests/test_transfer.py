"""Transfer: the right weights begin, scratch is fair, and unsuited targets are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image

from hpsearch import confirm, transfer
from hpsearch.arms import compare
from hpsearch.errors import DataError, UsageError
from hpsearch.export import export, read
from hpsearch.final_test import final_test
from hpsearch.models.takeover import COPIED, NEW, RESIZED
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.storage.open import create
from hpsearch.storage.studies import RECIPE_KEY, study_names
from tests.chain import Chain, silent


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports") / "small"
    export(chain.database, chain.search, 1, place, chain.settings, silent)
    return place


def test_the_comparison(folder: Path, tmp_path: Path) -> None:
    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    plans = [transfer.plan(folder, "digits:5-9", size, 3, 2, settings) for size in (None, 24)]
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        studies = transfer.create(database, plans, settings)
        assert [study.name for study in studies] == ["lenet-to-digits-5-9-16", "lenet-to-digits-5-9-24"]
        assert transfer.create(database, plans, settings)[0].created == studies[0].created  # not twice
        chain = Chain(database, settings)
        for study in studies:
            chain.work(study.name)
        arms = compare(studies)
        assert [arm.label for arm in arms[:4]] == [
            "transfer",
            "transfer, head only",
            "transfer, head first",
            "scratch",
        ]
        assert all(len(arm.values) == 3 for arm in arms)
        for arm, scratch in ((arms[0], arms[3]), (arms[5], arms[7])):
            assert arm.over_scratch is not None
            leads = np.subtract(arm.values, scratch.values)
            assert arm.over_scratch.mean == pytest.approx(leads.mean())
        assert arms[3].over_scratch is None
        trials = studies[0].optuna_study.trials
        recipes = [trial.user_attrs[RECIPE_KEY] for trial in trials[:4]]
        fixed = [{k: v for k, v in r.items() if k != "start" and not k.startswith("frozen")} for r in recipes]
        assert fixed[0] == fixed[1] == fixed[2] == fixed[3]  # the same budget, seeds, order and rates
        assert [recipe["start"] for recipe in recipes] == ["export"] * 3 + ["scratch"]
        record = final_test(database, studies[0], settings, None, silent)
        assert {result["label"] for result in record["results"]} == {arm.label for arm in arms[:4]}


def test_head_only_keeps_the_body_of_the_export(folder: Path, tmp_path: Path) -> None:
    from hpsearch.trained import dataset_of, network

    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        (study,) = transfer.create(database, [transfer.plan(folder, "digits:5-9", None, 2, 1, settings)], settings)
        Chain(database, settings).work(study.name)
        _, _, given = read(folder)
        dataset = dataset_of(study.spec, settings)
        body = {}
        for number, label in enumerate(["transfer", "head only", "head first", "scratch"]):
            model = network(study, confirm.groups(study)[number].trials[0], dataset, settings, silent).model
            body[label] = torch.equal(model.state_dict()["c5.weight"], given["c5.weight"])
            assert not torch.equal(model.state_dict()["output.weight"], given["output.weight"])
        assert body == {"transfer": False, "head only": True, "head first": True, "scratch": False}


def test_the_table_of_layers(folder: Path, chain: Chain) -> None:
    fates = {f.layer: f for f in transfer.plan(folder, "digits:5-9", None, 2, None, chain.settings).layers}
    assert fates["c5"].fate == COPIED
    assert fates["output"].fate == NEW
    assert "other classes" in fates["output"].why
    fates = {f.layer: f for f in transfer.plan(folder, "digits:5-7", 32, 2, None, chain.settings).layers}
    assert fates["c5"].fate == COPIED  # pooled before C5
    assert fates["output"].fate == NEW
    same = {f.layer: f for f in transfer.plan(folder, "digits:0-4", None, 2, None, chain.settings).layers}
    assert same["output"].fate == COPIED
    assert RESIZED not in {fate.fate for fate in same.values()}


def pictures(folder: Path, classes: tuple[str, ...]) -> Path:
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / part / name / f"{number}.png")
    return folder


def test_targets_that_do_not_suit(folder: Path, tmp_path: Path) -> None:
    settings = Settings(storage_url="", home=tmp_path / "home", data_dir=tmp_path, device="cpu")
    colour = pictures(tmp_path / "colour", ("a", "b"))
    with pytest.raises(UsageError, match=r"images of 3 channel\(s\)"):
        transfer.plan(folder, f"folder:{colour}", None, 2, None, settings)
    single = pictures(tmp_path / "single", ("a",))
    with pytest.raises(DataError, match="two or more class folders"):
        transfer.plan(folder, f"folder:{single}", None, 2, None, settings)
    pictures(tmp_path / "stl5", ("car", "deer", "horse", "monkey"))
    with pytest.raises(DataError, match="truck"):
        transfer.plan(folder, "stl5", None, 2, None, settings)
    with pytest.raises(UsageError, match="no such folder"):
        transfer.plan(tmp_path / "absent", "digits:5-9", None, 2, None, settings)
    assert not (tmp_path / "home" / "weights").exists()


def test_the_lead_is_paired_by_seed_where_a_trial_of_scratch_has_failed(folder: Path, tmp_path: Path) -> None:
    """Seeds 0 and 2 of scratch are compared with seeds 0 and 2, not with the first two that there are."""
    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        (study,) = transfer.create(database, [transfer.plan(folder, "digits:5-9", None, 3, 1, settings)], settings)
        for values in ((0.5, 0.4, 0.4, 0.3), (0.9, 0.8, 0.8, None), (0.6, 0.5, 0.5, 0.4)):
            for value in values:
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                study.optuna_study.add_trial(optuna.trial.create_trial(state=state, value=value))
        arms = compare([study])
        assert [arm.values for arm in arms[2:]] == [(0.4, 0.8, 0.5), (0.3, 0.4)]
        lead = arms[0].over_scratch
        assert lead is not None
        assert (lead.num, lead.mean) == (2, pytest.approx(0.2))
        assert lead.std == pytest.approx(0.0)


def test_a_target_of_a_long_name_has_a_study_of_a_shorter_one(folder: Path) -> None:
    metrics, _, _ = read(folder)
    fixed = {**confirm.configuration(Recipe(**metrics.configuration)), "epochs": 1}
    fixed.pop("gamma")
    names = [transfer._spec(metrics, f"folder:/{'x' * 220}{end}", 16, 2, fixed, 5).name for end in ("a", "b", "a")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("lenet-to-xxx") and name.endswith("-16") for name in names)


def test_another_export_does_not_go_on_with_the_same_study(folder: Path, chain: Chain, tmp_path: Path) -> None:
    settings = replace(chain.settings, home=tmp_path)
    export(chain.database, chain.search, 2, tmp_path / "other", chain.settings, silent)
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        transfer.create(database, [transfer.plan(folder, "digits:5-9", None, 2, 1, settings)], settings)
        other = transfer.plan(tmp_path / "other", "digits:5-9", None, 2, 1, settings)
        with pytest.raises(UsageError, match="from another export"):
            transfer.create(database, [other], settings)


def test_all_sizes_are_made_or_none(folder: Path, chain: Chain, tmp_path: Path) -> None:
    settings = replace(chain.settings, home=tmp_path)
    export(chain.database, chain.search, 2, tmp_path / "other", chain.settings, silent)
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        transfer.create(database, [transfer.plan(folder, "digits:5-9", 24, 2, 1, settings)], settings)
        others = [transfer.plan(tmp_path / "other", "digits:5-9", size, 2, 1, settings) for size in (16, 24)]
        with pytest.raises(UsageError, match="from another export"):
            transfer.create(database, others, settings)
        assert study_names(database) == ["lenet-to-digits-5-9-24"]


def test_a_study_of_that_name_on_other_images_or_of_other_length_is_not_shown_for_it(
    folder: Path, tmp_path: Path
) -> None:
    """Folders of one name in two places give one name of a study."""
    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:

        def created(data: str, seeds: int | None, epochs: int | None) -> str:
            return transfer.create(database, [transfer.plan(folder, data, None, seeds, epochs, settings)], settings)[
                0
            ].name

        name = created("digits:5-9", 2, 1)
        assert created("digits:5-9", None, None) == created("digits:5-9", 2, 1) == name
        with pytest.raises(UsageError, match=r"--seeds 3: .* with 2, and that is not changed"):
            created("digits:5-9", 3, None)
        with pytest.raises(UsageError, match=r"--epochs 4: .* with 1, and that is not changed"):
            created("digits:5-9", None, 4)
        wanted = transfer.plan(folder, "digits:5-9", None, None, None, settings)
        other = replace(wanted.spec, data=wanted.spec.data.model_copy(update={"name": "folder:old/digits:5-9"}))
        with pytest.raises(UsageError, match="is there already, with the data digits:5-9"):
            transfer.create(database, [replace(wanted, spec=other)], settings)


def test_a_search_of_how_to_transfer_is_confirmed_against_scratch(folder: Path, tmp_path: Path) -> None:
    from hpsearch.export import pinned
    from hpsearch.spec import parse
    from hpsearch.storage.studies import create_study, load_study

    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    text = f"""
name = "carry"
[model]
name = "lenet"
export = "{folder}"
[data]
name = "digits:5-9"
image_size = 16
[training]
epochs = 2
start = "export"
[space]
frozen_layers = {{ low = 0, high = 4 }}
frozen_epochs = {{ low = 1, high = 2, when = {{ frozen_layers = [1, 2, 3, 4] }} }}
[budget]
trials = 3
"""
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, pinned(parse(text, "carry.toml"), settings), "carry")
        Chain(database, settings).work("carry")
        linked = confirm.create(database, load_study(database, "carry"), 1, 2)
        label, values = linked.spec.candidates[-1]
        assert (label, values["start"]) == ("scratch", "scratch")
        bare = Recipe(model="lenet", epochs=2)  # were it the best, it would be the candidate from scratch itself
        best = optuna.trial.create_trial(value=1.0, user_attrs={RECIPE_KEY: bare.as_dict()})
        starts = [values["start"] for _, values in confirm._candidates(load_study(database, "carry"), [best], 1)]
        assert starts.count("scratch") == 1
        Chain(database, settings).work(linked.name)
        assert confirm.result(linked).finished
