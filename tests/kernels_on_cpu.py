"""CUDA kernels compiled for a CPU: their own source, with a few lines in place of CUDA."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch

from hpsearch.kernels import TYPES, Argument

COMPILER = shutil.which("g++")
OPTIONS = ["-O1", "-std=c++20", "-shared", "-fPIC", "-pthread", "-Wl,-Bsymbolic", "-w", "-x", "c++"]
HEADER = Path(__file__).with_name("cuda_on_cpu.h")
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)')


class KernelsOnCpu:
    """In place of `hpsearch.kernels.Kernels`."""

    def __init__(self, package: str, file: str, defines: Mapping[str, int], folder: Path) -> None:
        source = resources.files(package).joinpath(file).read_text()
        text = f'#include "{HEADER}"\n{source}\n'
        for name, parameters in KERNEL.findall(source):
            names = ", ".join(one.split()[-1].lstrip("*") for one in parameters.split(","))
            text += f'extern "C" void run_{name}(const int* blocks, int threads, {parameters}) '
            text += f"{{ run(blocks, threads, [=] {{ {name}({names}); }}); }}\n"
        written, library = folder / "kernels.cpp", folder / "kernels.so"
        written.write_text(text)
        assert COMPILER is not None
        given = [f"-D{name}={value}" for name, value in defines.items()]
        subprocess.run([COMPILER, *OPTIONS, *given, str(written), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, blocks: tuple[int, int, int], threads: int, *arguments: Argument) -> None:
        given = []
        for one in arguments:
            if isinstance(one, torch.Tensor):
                assert one.is_contiguous()
                given.append(ctypes.c_void_p(one.data_ptr()))
            else:
                given.append(TYPES.get(type(one), ctypes.c_void_p)(one))
        getattr(self._library, f"run_{name}")((ctypes.c_int * 3)(*blocks), threads, *given)
