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
    ],
)
def test_what_does_not_fit_is_left_to_torch(sizes: Sizes) -> None:
    assert not sizes.fits


def test_a_mistake_is_the_compilers_message() -> None:
    with pytest.raises(RuntimeError, match="EACH"):
        compiled("hpsearch.train", "update.cu", {}, "sm_90")


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    available.cache_clear()
    try:
        assert available()
        available.cache_clear()
        monkeypatch.setattr(kernels, "import_module", missing)
        assert not available()
    finally:
        available.cache_clear()
