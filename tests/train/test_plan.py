"""The plan: which trials share a program, and that sharing changes no trial."""

import math
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpsearch.models.build import build_model, built_in
from hpsearch.models.perceptron import TwoLayerPerceptron
from hpsearch.recipe import Recipe
from hpsearch.train import stream as stream_module
from hpsearch.train.device_data import let_go, make_room, out_of_memory
from hpsearch.train.lanes import Lanes
from hpsearch.train.plan import Graph, bucket
from hpsearch.train.program import EpochResult, Program, place
from hpsearch.train.stream import Stream
from tests.train.data import small_data_set
from tests.train.test_fused import DEVICES, assert_same

DATA = place(small_data_set(), "cpu")
RECIPE = Recipe(model="2lp", epochs=3, hidden_width=65, batch_size=16, augmentation="crop-flip")


class Own(nn.Module):
    """A network of another package, which says nothing about being padded."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, hidden_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden_width), nn.LazyLinear(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def test_only_networks_that_say_so_are_padded() -> None:
    assert [bucket(width) for width in (1, 2, 3, 5, 64, 65, 96, 97, 129)] == [1, 2, 3, 6, 64, 96, 96, 128, 192]
    assert Graph.of(RECIPE, TwoLayerPerceptron).width == 96
    assert Graph.of(RECIPE, Own).width == 65
    assert Graph.of(replace(RECIPE, hidden_width=None), TwoLayerPerceptron).width is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "3lp"},
        {"native_size": 8},
        {"batch_size": 32},
        {"precision": "bfloat16"},
        {"augmentation": "none"},
        {"stream_seed": 1},
        {"hidden_width": 97},
    ],
)
def test_what_changes_the_graph_or_the_images_makes_another_group(change: dict[str, object]) -> None:
    other = replace(RECIPE, **change)  # type: ignore[arg-type]
    assert Graph.of(other, TwoLayerPerceptron) != Graph.of(RECIPE, TwoLayerPerceptron)


def test_what_is_a_number_of_each_lane_makes_none() -> None:
    other = replace(
        RECIPE,
        optimizer="adam",
        learning_rate=0.5,
        momentum=0.1,
        weight_decay=0.1,
        clip_norm=2.0,
        dropout=0.4,
        seed=9,
        hidden_width=66,
    )
    assert Graph.of(other, TwoLayerPerceptron) == Graph.of(RECIPE, TwoLayerPerceptron)


def test_trials_of_two_streams_see_their_own_images() -> None:
    recipes = {key: replace(RECIPE, hidden_width=12, stream_seed=seed) for key, seed in ((1, 5), (2, 6), (3, 5))}
    lanes = Lanes(DATA, TwoLayerPerceptron, fuse=True)
    for key, recipe in recipes.items():
        lanes.add(key, recipe, build_model(recipe, DATA.input_shape, DATA.num_classes))
    singles = {
        key: Program(recipe, build_model(recipe, DATA.input_shape, DATA.num_classes), DATA)
        for key, recipe in recipes.items()
    }
    for _ in range(RECIPE.epochs):
        together = []
        for group in lanes.groups():
            results = group.train_epoch()
            group.keep_epoch()
            together.append(set(results))
            for key, result in results.items():
                assert isinstance(result, EpochResult)
                assert_same(result, singles[key].run_epoch())
        assert together == [{1, 3}, {2}]
    assert not lanes.refusals


class Uneven(nn.Module):
    """A network whose width follows from what the graph does not tell."""

    own_randomness = False

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        width = 5 if dropout > 0.1 else 4
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def test_trials_that_do_not_fit_into_one_program_train_alone() -> None:
    recipes = [replace(RECIPE, model="own", hidden_width=None, dropout=dropout) for dropout in (0.1, 0.2)]
    lanes = Lanes(DATA, Uneven, fuse=True)
    for key, recipe in enumerate(recipes):
        lanes.add(key, recipe, build_model(recipe, DATA.input_shape, DATA.num_classes, Uneven))
    results = {key: result for group in lanes.groups() for key, result in group.train_epoch().items()}
    for key, recipe in enumerate(recipes):
        alone = Program(recipe, build_model(recipe, DATA.input_shape, DATA.num_classes, Uneven), DATA).run_epoch()
        result = results[key]
        assert isinstance(result, EpochResult)
        assert_same(result, alone)


def test_programs_of_one_stream_see_images_that_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: trials whose batches are of other sizes train in another program."""
    made: list[int] = []
    augment = stream_module.augment

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(len(args[1]))
        return augment(*args, **kwargs)

    data = place(small_data_set(), "cpu")
    first = replace(RECIPE, hidden_width=12, batch_size=16)
    chosen = {1: first, 2: replace(first, batch_size=32, seed=9)}  # whole batches of both make a block of 2,048
    results: list[list[Any]] = []
    for kept in (False, True):
        monkeypatch.setattr(stream_module, "_num_kept", lambda _, kept=kept: int(kept))
        monkeypatch.setattr(stream_module, "augment", counted if kept else augment)
        lanes = Lanes(data, TwoLayerPerceptron, fuse=True)
        for key, recipe in chosen.items():
            lanes.add(key, recipe, build_model(recipe, data.input_shape, data.num_classes))
        results.append([])
        for _ in range(2):
            for group in lanes.groups():
                found = group.train_epoch()
                results[-1] += [replace(found[key], images_per_second=0.0) for key in sorted(found)]
                group.keep_epoch()
    assert results[0] == results[1]
    assert made == [data.num_images] * 2  # two epochs of two programs
    assert [number for number, _ in data.augmented.epochs.values()] == [1]


def test_streams_that_are_made_side_by_side_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of networks that cannot be fused, a block of each at a time; one is given up half made."""
    monkeypatch.setattr(stream_module, "BLOCK", 32)
    data, streams = place(small_data_set(), "cpu"), [Stream("crop-flip", 16, seed) for seed in range(4)]
    alone = [[images.clone() for images, _ in stream.blocks(data, 0)] for stream in streams]
    monkeypatch.setattr(stream_module, "_num_kept", lambda data: 3 * data.augmented.wanted)
    going = [stream.blocks(data, 0) for stream in streams]
    together = [[next(blocks)[0].clone()] for blocks in going]  # for the last one there is no room
    del going[1]
    for place_, blocks in enumerate(going):
        together[(0, 2, 3)[place_]] += [images.clone() for images, _ in blocks]
    assert [seed for _, seed, _ in data.augmented.epochs] == [0, 2]
    for stream, images in zip(streams, alone, strict=True):
        for found in ([one.clone() for one, _ in stream.blocks(data, 0)], together[stream.seed][: len(images)]):
            assert all(map(torch.equal, found, images))
    assert data.augmented._making == []


def test_images_that_are_being_made_make_room_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_num_kept", lambda data: 2 * data.augmented.wanted)
    monkeypatch.setattr(stream_module, "BLOCK", 32)
    data = place(small_data_set(), "cpu")
    streams = [Stream("none", 16, seed) for seed in range(3)]
    for stream in streams:
        list(stream.blocks(data, 0))
    assert [seed for _, seed, _ in data.augmented.epochs] == [1, 2]
    begun = streams[0].blocks(data, 1)
    next(begun)
    assert [seed for _, seed, _ in data.augmented.epochs] == [2]  # two, with the one that is made
    assert make_room(torch.OutOfMemoryError("CUDA out of memory"), data)
    assert data.augmented.num_bytes == 0
    assert len(list(begun)) == 2  # of three blocks
    assert data.augmented.epochs == {}
    assert not make_room(torch.OutOfMemoryError("CUDA out of memory"), data)


def test_images_that_an_error_cut_off_made_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are gone before anybody can count them."""
    monkeypatch.setattr(stream_module, "_num_kept", lambda data: 2 * data.augmented.wanted)
    data = place(small_data_set(), "cpu")
    assert not make_room(torch.OutOfMemoryError("CUDA out of memory"), data)  # none were made
    data = place(small_data_set(), "cpu")

    def train() -> None:
        for _ in Stream("none", 16, 0).batches(data, 0):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        train()
    assert data.augmented.num_bytes == 0
    assert make_room(caught.value, data)
    assert not make_room(caught.value, data)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (MemoryError(), True),
        (ValueError("of a network"), False),
    ],
)
def test_what_is_for_want_of_memory(error: Exception, full: bool) -> None:
    assert out_of_memory(error) == full


@pytest.mark.parametrize("device", DEVICES)
def test_trials_that_begin_again_wait_off_the_device(device: str) -> None:
    """Memory is scarce: their states would keep the new programs from fitting."""
    recipes = {key: Recipe(model="2lp", epochs=2, batch_size=16, hidden_width=12, seed=key) for key in range(3)}

    def model(recipe: Recipe) -> nn.Module:
        return build_model(recipe, (3, 16, 16), 4)

    lanes = Lanes(place(small_data_set(), device), built_in("2lp"), fuse=True)
    for key, recipe in recipes.items():
        lanes.add(key, recipe, model(recipe))
    for group in lanes.groups():
        group.train_epoch()
        group.keep_epoch()
    lanes.restart(list(recipes), model)
    for key in recipes:
        state = lanes.state(key)
        assert state is not None
        assert state["epoch"] == 1
        assert {value.device.type for value in state.values() if isinstance(value, Tensor)} == {"cpu"}
    (group,) = lanes.groups()
    assert all(result.epoch == 2 for result in group.train_epoch().values() if isinstance(result, EpochResult))


def test_what_a_cause_of_an_error_holds_is_let_go() -> None:
    class Held:
        pass

    def fail() -> None:
        held = Held()
        watched.append(weakref.ref(held))
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

    watched: list[weakref.ref[Held]] = []
    try:
        try:
            fail()
        except RuntimeError as error:
            raise torch.OutOfMemoryError("CUDA out of memory") from error
    except torch.OutOfMemoryError as error:
        let_go(error, torch.device("cpu"))
        assert watched[0]() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_lanes_without_kernels_are_complained_of_once() -> None:
    data: Any = SimpleNamespace(device=torch.device("cuda", 0))
    lanes = Lanes(data, lambda *_: nn.Identity(), fuse=True)
    assert lanes.complaints() == []
    lanes._fused.append(None)  # type: ignore[arg-type]
    assert [line[:44] for line in lanes.complaints()] == ["kernels cannot be compiled for cuda:0, and l"]
    assert lanes.complaints() == []
