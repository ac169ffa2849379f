"""Exports: what is written can be checked, what is changed is noticed, and what is read predicts."""

import json
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hpsearch
from hpsearch import catalogue, confirm, export_schema
from hpsearch.cli.final_test import final_test as final_test_command
from hpsearch.data.folder import decoded
from hpsearch.data.images import Source
from hpsearch.errors import HpsearchError, UsageError, exit_code
from hpsearch.export import export, pinned, read
from hpsearch.export_schema import FILES, SUMS, Metrics
from hpsearch.exported import Exported
from hpsearch.final_test import final_test
from hpsearch.model_card import config
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import openings
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import CREATED_KEY, DATA_KEY, create_study, load_study, ranked
from hpsearch.storage.tables import VALUES
from hpsearch.trained import choose, data_of, network
from hpsearch.verify import verify
from tests.chain import SMALL, Chain, silent


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports") / "small"
    export(chain.database, chain.search, 1, place, chain.settings, silent)
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_an_export_checks(folder: Path, chain: Chain) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, SUMS])
    said = verify(folder, chain.settings)
    assert len(said) == 7
    assert "validation accuracy" in said[-1]
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_evidence_is_what_is_recorded(folder: Path, chain: Chain) -> None:
    metrics, _, _ = read(folder)
    winner = choose(chain.database, chain.search)[0]
    assert metrics.label == winner.label
    assert metrics.weights.validation_accuracy == pytest.approx(winner.middle.value)
    assert metrics.confirmation is not None
    values = [trial.value for trial in winner.trials]
    assert metrics.confirmation.value.mean == pytest.approx(np.mean(values))
    assert sorted(values)[1] == winner.middle.value  # the median of three
    assert metrics.search is not None
    assert (metrics.search.trials, metrics.search.complete, metrics.search.pruned_share) == (4, 4, 0.0)
    assert metrics.test is None
    card = (folder / "README.md").read_text()
    assert "never opened" in card
    assert metrics.data.fingerprint in card


def test_metrics_keep_to_the_published_schema(folder: Path) -> None:
    published = json.loads((Path(__file__).parents[1] / "docs" / "export.schema.json").read_text())
    assert published == export_schema.schema()
    jsonschema.Draft202012Validator.check_schema(published)
    metrics = json.loads((folder / "metrics.json").read_text())
    jsonschema.validate(metrics, published)
    metrics["weights"]["validation_accuracy"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metrics, published)


def test_its_study_file_trains_the_same_again(folder: Path, chain: Chain, tmp_path: Path) -> None:
    metrics, _, tensors = read(folder)
    spec = catalogue.read(str(folder / "config.toml"))
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, spec, "again")
        again = Chain(database, replace(chain.settings, home=tmp_path))
        again.work("again")
        (trial,) = load_study(database, "again").optuna_study.trials
        assert trial.value == metrics.weights.validation_accuracy
        export(database, load_study(database, "again"), 1, tmp_path / "again", again.settings, silent)
    _, _, twice = read(tmp_path / "again")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, twice[name])


def test_its_study_file_has_the_precision() -> None:
    spec, recipe = catalogue.read("lenet"), Recipe("lenet", 3, precision="bfloat16")
    assert tomllib.loads(config(spec, recipe))["training"]["precision"] == "bfloat16"


def test_its_study_file_names_any_folder() -> None:
    spec = catalogue.read("lenet")
    name = 'folder:/home/\U0001f431 "Käse" \\ \x7f \t'
    spec = replace(spec, data=spec.data.model_copy(update={"name": name}))
    assert tomllib.loads(config(spec, Recipe("lenet", 3)))["data"]["name"] == name


def test_other_ranks_and_searches_without_confirmation(chain: Chain, tmp_path: Path) -> None:
    second = export(chain.database, chain.search, 2, tmp_path / "second", chain.settings, silent)
    assert second.rank == 2
    assert second.label == choose(chain.database, chain.search)[1].label
    with pytest.raises(UsageError, match="--rank 99"):
        export(chain.database, chain.search, 99, tmp_path / "none", chain.settings, silent)
    with pytest.raises(UsageError, match="exists already"):
        export(chain.database, chain.search, 1, tmp_path / "second", chain.settings, silent)
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, replace(chain.search.spec, name="bare"), "bare", 2)
        bare = Chain(database, replace(chain.settings, home=tmp_path))
        bare.work("bare")
        made = export(database, load_study(database, "bare"), 1, tmp_path / "bare", bare.settings, silent)
        assert made.confirmation is None
        assert made.label == f"trial {ranked(load_study(database, 'bare'))[0].number}"
    assert "partly luck" in (tmp_path / "bare" / "README.md").read_text()
    assert not (tmp_path / "none").exists()


def networks_of(made: Metrics) -> dict[str, Any]:
    """What a record of the test of an export's networks says of them."""
    assert made.confirmation is not None
    return {
        "configuration": confirm.configuration(Recipe(**made.configuration)),
        "seeds": made.confirmation.seeds,
    }


def test_an_export_of_the_confirmation_tells_of_the_test_of_what_it_confirms(chain: Chain, tmp_path: Path) -> None:
    own = export(chain.database, chain.search, 1, tmp_path / "own", chain.settings, silent)
    other = export(chain.database, chain.confirmation, 1, tmp_path / "other", chain.settings, silent)
    assert (other.test, other.weights) == (own.test, own.weights)
    record: dict[str, Any] = {"time": "2026-11-27", "label": own.label, "result": {"label": own.label}}
    measured = dict.fromkeys(("num", "mean", "std", "low", "high"), 0.5) | {"num": 3}
    record["result"] |= dict.fromkeys(("accuracy", "macro_f1", "calibration_error"), measured) | networks_of(own)
    number = len(openings.numbered(chain.database, chain.search))
    openings.begin(chain.database, chain.search, number, record)
    try:
        tested = export(chain.database, chain.confirmation, 1, tmp_path / "tested", chain.settings, silent)
        assert tested.test is not None
        assert tested.test.openings == number + 1
        assert "never opened" not in (tmp_path / "tested" / "README.md").read_text()
    finally:
        openings.withdraw(chain.database, chain.search, number)


def test_it_tells_of_the_test_of_its_own_configuration(chain: Chain, tmp_path: Path) -> None:
    """Several may be tested in one opening, and the best of them is another one."""
    own = export(chain.database, chain.search, 2, tmp_path / "own", chain.settings, silent)
    measured = {"num": 3, "std": 0.1, "low": 0.2, "high": 0.8}
    results = [
        {"label": label, **networks}
        | dict.fromkeys(("accuracy", "macro_f1", "calibration_error"), measured | {"mean": mean})
        for label, networks, mean in (
            ("another", networks_of(own) | {"configuration": {"epochs": 9}}, 0.7),
            (own.label, networks_of(own), 0.5),
        )
    ]
    number = len(openings.numbered(chain.database, chain.search))
    for there, mean in ((results, 0.5), (results[:1], None)):
        openings.begin(chain.database, chain.search, number, {"time": "now", "result": there[0], "results": there})
        try:
            place = tmp_path / f"tested-{mean}"
            test = export(chain.database, chain.search, 2, place, chain.settings, silent).test
            said = (place / "README.md").read_text()
        finally:
            openings.withdraw(chain.database, chain.search, number)
        assert (test and (test.label, test.accuracy.mean)) == (mean and (own.label, mean))
        assert ("no result of these networks" in said) == (mean is None)
        assert len(verify(place, chain.settings)) == 7


def test_a_rate_of_decay_that_decides_nothing_does_not_matter(chain: Chain, tmp_path: Path) -> None:
    """`gamma` is for the exponential schedule; a study may fix it, and search the schedule."""
    text = SMALL.replace("epochs = 3", "epochs = 1\ngamma = 0.9").partition("[[first]]")[0]
    text = text.replace("[space]", '[space]\nscheduler = ["constant", "exponential"]')
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, parse(text, "gamma.toml"), "gamma")
        one = Chain(database, replace(chain.settings, home=tmp_path))
        one.work("gamma")
        for rank in range(1, 5):
            made = export(database, load_study(database, "gamma"), rank, tmp_path / str(rank), one.settings, silent)
            assert made.configuration["gamma"] == 0.9
            assert len(verify(tmp_path / str(rank), one.settings)) == 7


def test_a_network_that_training_again_does_not_give_is_no_evidence(chain: Chain, tmp_path: Path) -> None:
    """As that of a GPU, whose weights were lost: nothing is tested or exported in its place, and it is not kept."""
    elsewhere = replace(chain.settings, home=tmp_path)
    trial = chain.confirmation.optuna_study.trials[0]
    trial.value = (trial.value or 0.0) - 0.1
    with pytest.raises(HpsearchError, match=r"its network gives .* bring the kept weights"):
        network(chain.confirmation, trial, data_of(chain.confirmation, elsewhere), elsewhere, silent)
    assert not list((tmp_path / "weights").rglob("*.safetensors"))


def test_a_search_that_trained_elsewhere_is_exported_with_what_its_network_gives(chain: Chain, tmp_path: Path) -> None:
    """The value of one trial of a search is no evidence; the export states that of its own network, and checks."""
    said: list[str] = []
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        create_study(database, replace(chain.search.spec, name="bare"), "bare", 2)
        bare = Chain(database, replace(chain.settings, home=tmp_path))
        bare.work("bare")
        with database.engine.begin() as connection:
            connection.execute(VALUES.update().values(value=VALUES.c.value - 0.1))
        best = ranked(load_study(database, "bare"))[0]
        assert best.value is not None
        for name in ("one", "again"):  # trained once more, and kept from then on
            made = export(database, load_study(database, "bare"), 1, tmp_path / name, bare.settings, said.append)
            assert made.weights.validation_accuracy == pytest.approx(best.value + 0.1)
            assert len(verify(tmp_path / name, bare.settings)) == 7
    assert [line for line in said if f"and {best.value:.4f} is recorded" in line] == said[1:]


def test_a_place_that_cannot_be_written_is_found_out_first(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.export.network", None)  # nothing trains
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        export(chain.database, chain.search, 1, tmp_path / "exports" / "one", chain.settings, silent)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file"):
        export(chain.database, chain.search, 1, tmp_path / "file" / "one", chain.settings, silent)


def test_nothing_is_half_written(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", full)
        with pytest.raises(HpsearchError, match="No space left") as told:
            export(chain.database, chain.search, 1, tmp_path / "out", chain.settings, silent)
    assert exit_code(told.value) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_a_confirmation_whose_search_is_gone_does_not_say_never_opened(
    chain: Chain, sqlite: Database, tmp_path: Path
) -> None:
    kept = chain.confirmation.optuna_study
    text = {key: value for key, value in kept.user_attrs.items() if key in (confirm.LINK_KEY, CREATED_KEY, DATA_KEY)}
    create_study(sqlite, chain.confirmation.spec, "small-confirm", attributes=text)
    study = load_study(sqlite, "small-confirm")
    for trial in kept.get_trials():
        study.optuna_study.add_trial(trial)
    export(sqlite, study, 1, tmp_path / "out", chain.settings, silent)
    said = (tmp_path / "out" / "README.md").read_text()
    assert "never opened" not in said
    assert "| test split | unknown: " in said
    with pytest.raises(UsageError, match="small that it confirms is not there, or cannot be read"):
        final_test(sqlite, study, chain.settings, None, silent)
    done = CliRunner().invoke(final_test_command, ["small-confirm", "--show", "--storage", str(sqlite.engine.url)])
    assert "small that it confirms is not there, or cannot be read" in str(done.exception)
    assert len(verify(tmp_path / "out", chain.settings)) == 7


def test_its_study_file_says_that_it_begins_with_another_export() -> None:
    spec = catalogue.read("lenet")
    spec = replace(spec, model=spec.model.model_copy(update={"export": "sha256:0"}))
    assert "weights of another export" in config(spec, Recipe("lenet", 3, start="export"))
    assert "another export" not in config(spec, Recipe("lenet", 3))


def test_a_folder_of_a_user_who_is_not_there_is_one_like_others(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(chain.database, chain.search, 1, "~nobody-of-that-name/out", chain.settings, silent)
    assert len(verify("~nobody-of-that-name/out", chain.settings)) == 7
    assert open_checkpoints("~nobody-of-that-name").keys("x") == []


# As a network


def test_three_lines_of_a_notebook(folder: Path, chain: Chain) -> None:
    network = hpsearch.load_export(folder)
    logits = network(network.preprocess(Image.new("RGB", (50, 40), "white")))
    assert logits.shape == (1, 5)
    assert network.classes == ("0", "1", "2", "3", "4")
    assert not network.training
    dataset = catalogue_dataset(chain)
    found = network.classify(np.array(dataset.validation_images))
    right = [network.classes[label] for label in dataset.validation_labels.tolist()]
    accuracy = float(np.mean([a == b for a, b in zip(found, right, strict=True)]))
    assert accuracy == pytest.approx(network.metrics.weights.validation_accuracy)


def test_pictures_are_read_as_those_that_trained_it(folder: Path, tmp_path: Path) -> None:
    """Turned as the camera was held, and of 16 bits all of them."""
    half = np.repeat(np.array([[0, 255]], np.uint8), 16, axis=0).repeat(8, axis=1)  # (16, 16), dark on the left
    network, exif = hpsearch.load_export(folder), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right: dark on top
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.full((16, 16), 20_000, np.uint16)).save(tmp_path / "deep.png")
    turned, deep = (network.preprocess(Image.open(tmp_path / f"{name}.png")) for name in ("turned", "deep"))
    assert torch.equal(turned, network.preprocess(half.T[None].copy()))
    assert torch.equal(deep, network.preprocess(np.full((1, 16, 16), 20_000 >> 8, np.uint8)))


@pytest.mark.parametrize("size", [(900, 700), (40, 30)])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_large_photo_is_read_as_in_training(size: tuple[int, int], kind: str, folder: Path, tmp_path: Path) -> None:
    """To the bit; and the caller's own image stays as it was."""
    metrics, _, _ = read(folder)
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"photo.{kind}")
    trained = decoded({"a": [tmp_path / f"photo.{kind}"]}, Source("folder:x", "x", None, tmp_path, 16)).images
    wanted = metrics.preprocessing.model_copy(update={"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3})
    network = Exported(torch.nn.Flatten(), metrics.model_copy(update={"preprocessing": wanted}))
    with Image.open(tmp_path / f"photo.{kind}") as photo:
        for _ in range(2):
            assert torch.equal(network.preprocess(photo), network.preprocess(trained))
        assert photo.size == size
        assert np.asarray(photo).shape == (size[1], size[0], 3)
        if kind == "png":  # a JPEG that is read by now was read as a whole
            assert torch.equal(network.preprocess(photo), network.preprocess(trained))


def test_no_images_have_no_classes(folder: Path) -> None:
    for side in (16, 20):
        assert hpsearch.load_export(folder).classify(np.zeros((0, 1, side, side), np.uint8)) == []


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_it_takes_another_precision(kind: torch.dtype, folder: Path, chain: Chain) -> None:
    network, images = hpsearch.load_export(folder), catalogue_dataset(chain).validation_images[:50]
    classes = network.classify(images)
    found = network.to(kind).classify(images)
    assert sum(one == other for one, other in zip(classes, found, strict=True)) > 45


def catalogue_dataset(chain: Chain):  # type: ignore[no-untyped-def]
    from hpsearch.trained import dataset_of

    return dataset_of(chain.search.spec, chain.settings)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 16, 16), np.uint8),
        np.zeros((1, 16, 16), np.float32),
        np.zeros((16, 16), np.uint8),
        np.zeros((1, 1, 0, 16), np.uint8),
    ],
    ids=["three channels", "floats", "no channels", "no pixels"],
)
def test_images_that_it_does_not_take(images: np.ndarray, folder: Path) -> None:
    with pytest.raises(UsageError, match="must be uint8"):
        hpsearch.load_export(folder).preprocess(images)


def test_a_study_that_begins_with_it_keeps_its_weights(copy: Path, chain: Chain, tmp_path: Path) -> None:
    from hpsearch import weights

    settings = Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")
    kept = open_checkpoints(settings.weights)
    spec = replace(chain.search.spec, model=chain.search.spec.model.model_copy(update={"export": str(copy)}))
    held = pinned(spec, settings)
    assert held.model.export is not None
    assert held.model.export.startswith("sha256:")
    assert pinned(held, settings) == held
    shutil.rmtree(copy)
    same, other = (weights.of_export(kept, held.model.export, classes) for classes in ("01234", "56789"))
    assert (same.foreign_head, other.foreign_head) == ("", "output")
    with pytest.raises(UsageError, match="copy that folder"):
        weights.of_export(open_checkpoints(str(tmp_path / "elsewhere")), held.model.export, "01234")
