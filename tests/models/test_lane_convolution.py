"""The kernels of convolution.cu, compiled for a CPU: many lanes at once give what torch's layers give one by one.

They multiply and add in float32 in another order than torch in float64: sums of up to some thousand terms, which err by
1e-6 of the largest value at most; a term left out or taken twice makes more than 1e-3.
"""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from hpsearch.models import lane_convolution
from hpsearch.models.lane_convolution import Sizes, squashed_convolution
from tests.kernels_on_cpu import COMPILER, KernelsOnCpu

TOLERANCE = 3e-6
LAYERS = {  # (C, H, W), O
    "C1": ((3, 32, 32), 6),
    "C3": ((6, 14, 14), 16),
    "grey": ((1, 28, 28), 6),
    "small": ((6, 6, 6), 16),
    "oblong": ((2, 16, 24), 5),
}
needs_a_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    @cache
    def compiled(sizes: Sizes, device: torch.device) -> KernelsOnCpu:
        folder = tmp_path_factory.mktemp("kernels")
        return KernelsOnCpu("hpsearch.models", "convolution.cu", sizes.defines, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_convolution, "_kernels", compiled)
        yield


def plain(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.avg_pool2d(functional.conv2d(maps, weight, bias).tanh(), 2)


def numbers(layer: str, num_lanes: int, num_images: int, shared: bool) -> list[Tensor]:
    (channels, rows, columns), outputs = LAYERS[layer]
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(1 if shared else num_lanes, num_images, channels, rows, columns, generator=generator)
    weight = torch.randn(num_lanes, outputs, channels, 5, 5, generator=generator) / (5 * channels**0.5)
    return [maps, weight, torch.randn(num_lanes, outputs, generator=generator)]


def differences(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, exact, strict=True)]


def lanes(layer: str, num_lanes: int, num_images: int, shared: bool, *, exact: bool) -> list[Tensor]:
    """Pooled maps of all lanes, and the gradients of a sum of them with random weights."""
    given = numbers(layer, num_lanes, num_images, shared)
    if exact:
        given = [one.double() for one in given]
    given = [one.requires_grad_() for one in given]
    maps, weight, bias = given
    in_dims = (None, 0, 0) if shared else (0, 0, 0)
    function = plain if exact else squashed_convolution
    pooled = vmap(function, in_dims=in_dims)(maps[0] if shared else maps, weight, bias)
    above = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    return [pooled.detach(), *torch.autograd.grad((pooled * above).sum(), given)]


@needs_a_compiler
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_images", [1, 7])
@pytest.mark.parametrize("layer", LAYERS)
def test_lanes_are_what_each_trial_gives_alone(layer: str, num_images: int, shared: bool) -> None:
    found, exact = (lanes(layer, 3, num_images, shared, exact=exact) for exact in (False, True))
    assert max(differences(found, exact)) < TOLERANCE
