"""The layers of benchmarks/convolutions.py: every side computes what torch computes for each lane alone."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.convolutions import LAYERS, SEPARATE, TOLERANCE, Layer, Side, all_sides, error, example, measure, show

REPOSITORY = Path(__file__).parent.parent
SIDES = all_sides(with_triton=False)
SHARED_MEMORY = 99 * 1024  # bytes that one program may use on the smallest of the GPUs that have TF32

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_side_agrees_with_separate_layers(side: Side, layer: Layer) -> None:
    for num_lanes, batch_size in ((1, 2), (5, 3)):
        assert error(side, layer, num_lanes, batch_size) <= TOLERANCE


@needs_triton
def test_triton_agrees_in_its_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "benchmarks.convolutions", "--check"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    checked = [line.split()[0] for line in ended.stdout.splitlines() if " triton " in line]
    assert checked == [layer.name for layer in LAYERS]


@needs_triton
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_triton_compiles_for_a_gpu(
    layer: Layer, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does; which needs no GPU. Tiles are the largest of each layer."""
    from benchmarks import triton_convolution as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    outputs = kernels.output_columns(layer.outputs * (256 if layer.shared else 1))
    sizes = {"C": layer.channels, "H": layer.size, "W": layer.size, "OUTPUTS": outputs, "PRECISION": precision}
    sizes |= {"POSITIONS": kernels.POSITIONS, "TERMS": kernels.TERMS}
    for kernel, columns in (
        (kernels.forward_kernel, 0),
        (kernels.weight_kernel, kernels.COLUMNS),
        (kernels.images_kernel, 16),
    ):
        built = compiled(kernel, {**sizes, "COLUMNS": columns})
        assert ("mma" in built.asm["ptx"]) == (precision == "tf32")
        assert 0 < built.metadata.shared <= SHARED_MEMORY


def compiled(kernel: Any, constants: dict[str, object]) -> Any:
    """For compute capability 9.0; what is neither a constant nor a number is a pointer."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = {(index,): constants[name] for index, name in enumerate(kernel.arg_names) if name in constants}
    kinds = dict.fromkeys(("B", "G", "O", "rows_of_a_part"), "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_flop_are_those_that_torch_counts(layer: Layer) -> None:
    given = example(layer, 3, 2, SEPARATE.order, "cpu")
    with FlopCounterMode(display=False) as counter:
        given.run(SEPARATE)
    assert layer.flop(3, 2) == counter.get_total_flops()


def test_a_line_for_each_side(capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(SIDES, LAYERS[1], 2, 1, "cpu")
    show(found, LAYERS[1], 2, 1, (1e9, 1e9))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[3:]] == [side.name for side in SIDES]
    assert all(seconds > 0 for times in found.values() for seconds in times)
