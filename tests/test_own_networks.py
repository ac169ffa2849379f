"""Networks of one's own, from training to an export and to transfer: tied weights, and layers in any order."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hpsearch
from hpsearch import transfer
from hpsearch.data.load import load
from hpsearch.errors import UsageError
from hpsearch.export import export, pinned
from hpsearch.interrupt import Interruption
from hpsearch.models import MODELS
from hpsearch.models.build import build_model
from hpsearch.models.takeover import COPIED, NEW
from hpsearch.recipe import Recipe
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study
from hpsearch.train.augment import normalise
from hpsearch.train.device_data import place
from hpsearch.train.fused import CannotFuse, Fused
from hpsearch.train.program import Program
from hpsearch.trying import _try
from hpsearch.verify import verify
from hpsearch.worker import run
from tests.chain import silent
from tests.train.data import small_data_set

TEXT = """
name = "own"
seeds = 1
[model]
name = "{model}"
[data]
name = "digits:0-4"
image_size = 8
[training]
epochs = 1
"""


class Tied(nn.Module):
    """Two layers that are one matrix, behind a norm that counts its batches."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.first = nn.Linear(channels * height * width, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.output = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.norm(self.first(images.flatten(1))).relu()
        logits: Tensor = self.output(self.third(self.second(values).relu()).relu())
        return logits


class HeadFirst(nn.Module):
    """Made in another order than used."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.output, self.body = nn.Linear(8, num_classes), nn.Linear(channels * height * width, 8)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.body(images.flatten(1)).relu())
        return logits


def made(name: str, database: Database, settings: Settings, place: Path) -> Path:
    """A study of a network of this file, trained and exported."""
    create_study(database, parse(TEXT.format(model=name), "own.toml"), "own")
    list(run(database, "own", settings, Interruption()))
    export(database, load_study(database, "own"), 1, place, settings, silent)
    return place


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tied", f"{__name__}:Tied")
    monkeypatch.setitem(MODELS, "headfirst", f"{__name__}:HeadFirst")


def test_tied_weights_are_exported(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    place = made("tied", sqlite, settings, tmp_path / "out")
    assert len(verify(place, settings)) == 7
    network = hpsearch.load_export(place)
    own = network.network
    assert isinstance(own, Tied)
    assert own.third.weight is own.second.weight
    dataset = load("digits:0-4", data_dir=None, cache_dir=settings.home / "datasets", image_size=8)
    logits = network(network.preprocess(dataset.validation_images))
    right = logits.argmax(1) == torch.from_numpy(dataset.validation_labels.copy())
    assert float(right.double().mean()) == pytest.approx(network.metrics.weights.validation_accuracy)


def test_an_output_layer_that_is_not_made_last_is_not_carried_over(
    sqlite: Database, settings: Settings, tmp_path: Path
) -> None:
    """The body would begin anew, the classes of the export would stay, and `frozen_layers` count from the head."""
    place = made("headfirst", sqlite, settings, tmp_path / "out")
    message = "decides the size of output in the model headfirst, and its last layer is body; .* its one output layer"
    with pytest.raises(UsageError, match=message):
        transfer.plan(place, "digits:5-9", None, 2, 1, settings)
    spec = parse(TEXT.format(model="headfirst"), "own.toml")
    with pytest.raises(UsageError, match=message):
        pinned(replace(spec, model=spec.model.model_copy(update={"export": str(place)})), settings)
    assert not list((tmp_path / "weights").glob("export-*"))


def test_what_is_behind_tied_weights_is_carried_over(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    place = made("tied", sqlite, settings, tmp_path / "out")
    found = {fate.layer: fate.fate for fate in transfer.plan(place, "digits:5-9", None, 2, 1, settings).layers}
    assert found == dict.fromkeys(("first", "norm", "second", "third"), COPIED) | {"output": NEW}


class Half(nn.Module):
    """A network that computes in half precision, with a layer that it does not use."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)
        self.spare = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).bfloat16()  # type: ignore[no-any-return]


def test_half_precision_is_measured_whole_and_an_unused_layer_is_no_matter() -> None:
    data = place(small_data_set(), "cpu")
    alone = Program(recipe := Recipe(model="own", epochs=1), Half(data.input_shape, data.num_classes), data)
    group = Fused(recipe, None, data, 2, Half)
    group.fill(0, recipe, Half(data.input_shape, data.num_classes), alone.state())
    one, other = alone.run_epoch(), group.run_epoch()[0]
    images = normalise(data.validation_images, data.mean, data.std)
    with torch.no_grad():
        logits = alone.model.eval()(images).double()
    # To four digits: bfloat16 has two.
    assert one.validation_loss == pytest.approx(functional.cross_entropy(logits, data.validation_labels).item(), 1e-4)
    assert one.validation_accuracy == pytest.approx((logits.argmax(1) == data.validation_labels).double().mean().item())
    assert other.validation_loss == pytest.approx(one.validation_loss, 1e-3)
    assert other.training_loss == pytest.approx(one.training_loss, 1e-3)


def test_parameters_in_half_precision_are_not_fused() -> None:
    """Lanes hold float32: they would train another network."""
    data = place(small_data_set(), "cpu")

    def made(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes).double())

    with pytest.raises(CannotFuse, match=r"1.weight, 1.bias are torch.float64, not torch.float32"):
        Fused(Recipe(model="own", epochs=1), None, data, 2, made)


class Counting(nn.Linear):
    """Keeps a count outside of its tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


def test_a_state_that_is_no_tensor_is_refused() -> None:
    """No checkpoint could hold it."""
    with pytest.raises(UsageError, match="model own: its _extra_state is no tensor: keep it in a buffer"):
        build_model(Recipe("own", 1), (1, 2, 2), 2, lambda shape, num_classes: Counting(4, num_classes))


def test_a_gpu_that_others_fill_says_nothing_about_a_network() -> None:
    """cuBLAS has no memory for its handle where torch had some for the network."""

    def model(_recipe: Recipe) -> nn.Module:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    bench: Any = SimpleNamespace(data=SimpleNamespace(device=torch.device("cuda"), input_shape=(1, 2, 2)), model=model)
    with pytest.raises(torch.OutOfMemoryError, match="CUBLAS_STATUS_ALLOC_FAILED"):
        _try(bench, Recipe("own", 1))
