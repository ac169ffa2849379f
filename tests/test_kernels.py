"""Kernels compile for every GPU that torch 2.11 and later know, without one; where none can be, that is said."""

import pytest
import torch

from hpsearch import kernels
from hpsearch.kernels import available, compiled
from hpsearch.models.lane_convolution import Sizes

pytest.importorskip("cuda.bindings", reason="torch without CUDA")
pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="torch without CUDA")

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")
LARGEST = Sizes(3, 36, 36, 6, False)  # the kernels need the most memory, and threads, here


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [Sizes(3, 32, 32, 6, True), Sizes(6, 14, 14, 16, False), LARGEST])
def test_convolutions_compile(sizes: Sizes, architecture: str) -> None:
    assert sizes.fits
    assert compiled("hpsearch.models", "convolution.cu", sizes.defines, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_optimizers_compile(architecture: str) -> None:
    assert compiled("hpsearch.train", "update.cu", {"EACH": 4}, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(3, 33, 32, 6, False),  # odd maps
        Sizes(3, 96, 96, 6, False),  # more rows than a warp has threads
        Sizes(3, 32, 32, 32, False),  # more outputs than a thread has registers for
        Sizes(16, 32, 32, 6, False),  # more memory than a block has
        Sizes(1, 6, 6, 11, False),  # more threads than a block has
    ],
)
def test_what_does_not_fit_is_left_to_torch(sizes: Sizes) -> None:
    assert not sizes.fits


def test_a_mistake_is_the_compilers_message() -> None:
    with pytest.raises(RuntimeError, match="EACH"):
        compiled("hpsearch.train", "update.cu", {}, "sm_90")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_without_a_gpu_there_are_none(device: str) -> None:
    assert not available(torch.device(device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_runs_them() -> None:
    assert available(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", torch.OutOfMemoryError),  # fewer lanes may fit
        ("CUDA_ERROR_ILLEGAL_ADDRESS", torch.AcceleratorError),  # the process cannot go on
        ("CUDA_ERROR_INVALID_VALUE", RuntimeError),
    ],
)
def test_what_the_driver_says_becomes_the_error_that_torch_has_for_it(status: str, error: type[Exception]) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    with pytest.raises(error) as caught:
        kernels._done((getattr(driver.CUresult, status),))
    assert type(caught.value) is error
