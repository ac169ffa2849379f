"""Taking weights over: by name and shape, never the head of other classes."""

import pytest
import torch

from hpsearch.models.build import build_model
from hpsearch.models.takeover import COPIED, LEFT, NEW, RESIZED, Start, fates, take_over
from hpsearch.recipe import Recipe


def net(model: str = "lenet", size: int = 32, classes: int = 10, channels: int = 3, **values):  # type: ignore[no-untyped-def]
    return build_model(Recipe(model, 1, **values), (channels, size, size), classes)


def fate_of(model, start):  # type: ignore[no-untyped-def]
    return {fate.layer: fate.fate for fate in fates(model, start)}


def test_other_number_of_classes_resizes_the_head() -> None:
    source, target = net(seed=1), net(classes=5, seed=2)
    begun = target.output.weight.clone()
    take_over(target, Start(source.state_dict()))
    assert torch.equal(target.c5.weight, source.c5.weight)
    assert torch.equal(target.features[0].bias, source.features[0].bias)
    assert torch.equal(target.output.weight, begun)
    found = {fate.layer: fate for fate in fates(target, Start(source.state_dict()))}
    assert found["output"].fate == RESIZED
    assert found["output"].why == "weight is 5 x 84, in the export 10 x 84; begins anew"
    assert found["c5"].fate == COPIED


def test_the_head_of_other_classes_begins_anew_though_its_shape_agrees() -> None:
    source, target = net(seed=1), net(seed=2)
    begun = target.output.weight.clone()
    start = Start(source.state_dict(), foreign_head="output")
    take_over(target, start)
    assert torch.equal(target.output.weight, begun)
    assert torch.equal(target.f6.weight, source.f6.weight)
    assert fate_of(target, start)["output"] == NEW


def test_parameters_of_the_network_itself_are_taken_over() -> None:
    """As a class token of an installed package's model: it belongs to no layer, and to no class."""
    source, target = (torch.nn.Sequential(torch.nn.Linear(3, 2)) for _ in range(2))
    for model, value in ((source, 1.0), (target, 0.0)):
        model.register_parameter("token", torch.nn.Parameter(torch.full((3,), value)))
    take_over(target, Start(source.state_dict()))
    assert torch.equal(target.token, source.token)


@pytest.mark.parametrize("model", ["lenet", "lenet-bn", "2lp", "3lp"])
def test_native_size_keeps_every_shape_for_larger_images(model: str) -> None:
    source = net(model, size=32)
    target = net(model, size=96, native_size=32)
    start = Start(source.state_dict())
    assert set(fate_of(target, start).values()) == {COPIED}
    assert target(torch.zeros(2, 3, 96, 96)).shape == (2, 10)
    plain = net(model, size=96)
    assert RESIZED in fate_of(plain, start).values()


def test_native_size_of_the_images_themselves_changes_nothing() -> None:
    images = torch.randn(3, 3, 32, 32)
    for model in ("lenet", "2lp"):
        assert torch.allclose(net(model)(images), net(model, native_size=32)(images), atol=1e-6)


def test_layers_that_one_of_them_lacks() -> None:
    source = net("lenet-bn")
    found = fate_of(net("lenet"), Start(source.state_dict()))
    assert found["norm"] == LEFT
    assert fate_of(source, Start(net("lenet").state_dict()))["f7"] == NEW
