"""Augmentation: equal to torchvision image by image, and drawn with the promised frequencies."""

import math

import pytest
import torch
import torchvision.transforms.functional as tv
from torch import Tensor
from torchvision.transforms import InterpolationMode

from hpsearch.train import augment as module
from hpsearch.train.augment import ORDERS, PADDING, STEPS, Draws, _sharpen, _sharpened, augment, draw, normalise

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.26, 0.27)
# A value is some thirty float32 roundings (6e-8 each, of numbers up to 1.2) away from the same value computed in
# another order; dividing by a deviation of 0.25 makes it 1e-5 at most. A wrong pixel or factor is off by 1e-3 or more.
TOLERANCE = 2e-5


def images(num_images: int, channels: int, size: int = 32) -> Tensor:
    """Smooth shapes with noise, black and white areas: every cut-off at 0 and 255 is reached."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(num_images, channels, 4, 4, generator=generator) * 2 - 0.5
    fine = torch.rand(num_images, channels, size, size, generator=generator) * 0.3
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return ((smooth + fine).clamp(0, 1) * 255).to(torch.uint8)


def reference(name: str, image: Tensor, draws: Draws, row: int, channels: int) -> Tensor:
    """One image (C, H, W) through torchvision's functions on float tensors, with the same draws."""
    result = image.float() / 255
    if name == "crop-flip":
        top, left = draws["corner"][row].tolist()
        result = tv.crop(tv.pad(result, [PADDING]), top, left, *image.shape[1:])
    if draws["flip"][row]:
        result = tv.hflip(result)
    if name == "paper":
        result = tv.rotate(result, draws["angle"][row].item(), InterpolationMode.NEAREST, fill=[0.0] * channels)
        if draws["sharpen"][row]:
            result = tv.adjust_sharpness(result, 2)
        steps = {"b": tv.adjust_brightness, "c": tv.adjust_contrast, "s": tv.adjust_saturation}
        factors = {"b": "brightness", "c": "contrast", "s": "saturation"}
        for letter in ORDERS[int(draws["order"][row])]:
            result = steps[letter](result, draws[factors[letter]][row].item())
    normal: Tensor = tv.normalize(result, MEAN[:channels], STD[:channels])
    return normal


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("name", ["paper", "crop-flip"])
def test_equals_torchvision_image_by_image(
    name: str, size: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 32)  # more than one
    given = images(70, channels, size)
    draws = draw(name, len(given), seed=3)
    result = augment(name, given, draws, MEAN[:channels], STD[:channels])
    expected = torch.stack([reference(name, image, draws, row, channels) for row, image in enumerate(given)])
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE)


def test_equals_torchvision_with_strong_factors_in_every_order() -> None:
    """Factors from 0.2 to 1.8 reach all bounds, which those of `paper` hardly do."""
    given = images(90, 3)
    draws = draw("paper", len(given), seed=4)
    for factor in ("brightness", "contrast", "saturation"):
        draws[factor] = (draws[factor] - 1) * 8 + 1
    assert set(draws["order"].tolist()) == set(range(len(ORDERS)))
    result = augment("paper", given, draws, MEAN, STD)
    expected = torch.stack([reference("paper", image, draws, row, 3) for row, image in enumerate(given)])
    torch.testing.assert_close(result, expected, rtol=0, atol=5 * TOLERANCE)  # factors divide by 0.2 at most


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_and_none_equal_torchvision(channels: int) -> None:
    given = images(20, channels)
    expected = tv.normalize(given.float() / 255, MEAN[:channels], STD[:channels])
    result = normalise(given, MEAN[:channels], STD[:channels])
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(result, augment("none", given, draw("none", 20, 0), MEAN[:channels], STD[:channels]))


def test_out_is_filled_and_nothing_else_is_changed() -> None:
    given = images(40, 3)
    draws, out = draw("paper", 40, 1), torch.empty(40, 3, 32, 32)
    before = given.clone(), {key: value.clone() for key, value in draws.items()}
    assert augment("paper", given, draws, MEAN, STD, out=out) is out
    assert torch.equal(out, augment("paper", given, draws, MEAN, STD))
    assert torch.equal(given, before[0])
    assert all(torch.equal(draws[key], before[1][key]) for key in draws)


def test_the_way_for_gpus_sharpens_alike() -> None:
    """On a GPU all images are sharpened and the chosen ones kept; the same function must come out."""
    given, chosen = images(30, 3).float(), torch.arange(30) % 3 == 0
    expected = torch.where(chosen[:, None, None, None], _sharpened(given), given)
    _sharpen(given, chosen)
    assert torch.equal(given, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["none", "paper", "crop-flip"])
def test_a_gpu_gives_the_same(name: str) -> None:
    given, draws = images(300, 3), draw(name, 300, 5)
    on_gpu = {key: value.cuda() for key, value in draws.items()}
    result = augment(name, given.cuda(), on_gpu, MEAN, STD).cpu()
    torch.testing.assert_close(result, augment(name, given, draws, MEAN, STD), rtol=0, atol=TOLERANCE)


def test_draws_follow_from_the_seed_alone() -> None:
    for name in STEPS:
        first, again, other = draw(name, 50, 1), draw(name, 50, 1), draw(name, 50, 2)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not first or any(not torch.equal(first[key], other[key]) for key in first)


def near(values: Tensor, expected: float, deviation: float) -> bool:
    """Whether the mean lies within five standard errors of what is expected."""
    return abs(values.double().mean().item() - expected) < 5 * deviation / math.sqrt(len(values))


def test_draws_of_paper_have_the_promised_frequencies() -> None:
    draws = draw("paper", 20_000, 11)
    assert near(draws["flip"], 0.1, 0.3)
    assert near(draws["sharpen"], 0.1, 0.3)
    assert near(draws["angle"], 0, 20 / 3**0.5)
    assert near(draws["angle"].abs(), 10, 10 / 3**0.5)
    assert -20 <= draws["angle"].min() < -19.9
    assert 19.9 < draws["angle"].max() <= 20
    for factor in ("brightness", "contrast", "saturation"):
        assert near(draws[factor], 1, 0.1 / 3**0.5)
        assert near((draws[factor] - 1).abs(), 0.05, 0.05 / 3**0.5)
    for row in range(len(ORDERS)):
        assert near(draws["order"] == row, 1 / 6, 0.373)
    numbers = torch.stack([value.double() for value in draws.values()])
    assert (torch.corrcoef(numbers) - torch.eye(len(numbers))).abs().max() < 0.04  # independent of each other


def test_draws_of_crop_flip_have_the_promised_frequencies() -> None:
    draws = draw("crop-flip", 20_000, 11)
    assert near(draws["flip"], 0.5, 0.5)
    counts = torch.bincount(draws["corner"][:, 0] * 9 + draws["corner"][:, 1], minlength=81).double()
    expected = 20_000 / 81
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert len(counts) == 81
    assert chi_square < 80 + 5 * 160**0.5


def test_an_image_depends_on_its_own_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: neither the neighbours nor the size of the blocks may show, or a resumed run would differ."""
    given, draws = images(70, 3), draw("paper", 70, 2)
    whole = augment("paper", given, draws, MEAN, STD)
    monkeypatch.setattr(module, "BLOCK", 9)
    part = augment("paper", given[20:50], {key: value[20:50] for key, value in draws.items()}, MEAN, STD)
    assert torch.equal(part, whole[20:50])
