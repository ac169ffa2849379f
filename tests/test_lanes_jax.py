"""The side of benchmarks/throughput.py that is written in JAX does the same work; runs where JAX is installed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")

from benchmarks import lanes_jax  # noqa: E402
from benchmarks.sides import trial  # noqa: E402
from hpsearch.models.build import build_model  # noqa: E402
from hpsearch.train.augment import augment, draw  # noqa: E402
from hpsearch.train.device_data import DeviceData  # noqa: E402
from hpsearch.train.fused import Fused  # noqa: E402

NAMES = {
    "lenet": {"c1": "features.c1", "c3": "features.c3", "c5": "c5", "f6": "f6", "out": "output"},
    "2lp": {"hidden": "hidden", "out": "output"},
}


@pytest.fixture
def data() -> DeviceData:
    """64 images of noise in coarse patches: one batch."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (128, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels = torch.randint(0, 100, (128,), generator=generator)
    mean, std = lanes_jax.MEAN.ravel().tolist(), lanes_jax.STD.ravel().tolist()
    return DeviceData(images[:64], labels[:64], images[64:], labels[64:], tuple(mean), tuple(std), 100)


def test_the_augmentation_is_that_of_lanes(data: DeviceData) -> None:
    draws = draw("paper", 64, seed=3)
    ours = augment("paper", data.train_images, draws, data.mean, data.std).numpy()
    given = {name: value.numpy() for name, value in draws.items()}
    moved = lanes_jax.rotate(data.train_images.numpy().astype(np.float32), given["flip"], np.deg2rad(given["angle"]))
    sharp = np.where(given["sharpen"][:, None, None, None], lanes_jax.sharpened(moved), moved)
    factors = (given[name] for name in ("brightness", "contrast", "saturation", "order"))
    theirs = np.asarray(lanes_jax.normalise(lanes_jax.jitter(sharp, *factors)))
    # A source on the edge between two pixels may round to either: few pixels, but far apart.
    assert np.mean(np.abs(ours - theirs) > 1e-3) < 1e-3


@pytest.mark.parametrize("model", sorted(NAMES))
def test_a_step_is_that_of_lanes(model: str, data: DeviceData) -> None:
    recipes = [replace(trial(model, 64, lane), augmentation="none") for lane in range(3)]
    program = Fused(recipes[0], None, data, 3)
    for lane, recipe in enumerate(recipes):
        program.fill(lane, recipe, build_model(recipe, data.input_shape, 100))
    arrays = {"train_labels": data.train_labels.numpy(), "validation_labels": data.validation_labels.numpy()}
    population = lanes_jax.Population(model, 64, 3, arrays)
    carry = ((_weights(model, program), population.state[1]), np.float32(0), np.zeros(3, np.float32))
    images = lanes_jax.normalise(data.train_images.numpy().astype(np.float32))
    (weights, momentum), _, losses = population._step(carry, images, arrays["train_labels"])
    results = program.run_epoch()  # one step
    for lane, result in results.items():
        assert float(losses[lane]) / 64 == pytest.approx(result.training_loss, abs=1e-5)
        state = program.take(lane)
        for name, (weight, _) in weights.items():
            ours = f"{NAMES[model][name]}.weight"
            np.testing.assert_allclose(weight[lane], torch.as_tensor(state[f"model.{ours}"]), atol=1e-6)
            velocity = torch.as_tensor(state[f"optimizer.momentum.{ours}"])
            np.testing.assert_allclose(momentum[name][0][lane], velocity, atol=1e-5)


def _weights(model: str, program: Fused) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of all lanes, by the names of the JAX side."""
    states = [program.take(lane) for lane in range(program.num_lanes)]

    def stacked(name: str) -> np.ndarray:
        return np.stack([torch.as_tensor(state[f"model.{name}"]).numpy() for state in states])

    return {theirs: (stacked(f"{ours}.weight"), stacked(f"{ours}.bias")) for theirs, ours in NAMES[model].items()}
