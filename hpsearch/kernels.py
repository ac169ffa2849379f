"""CUDA kernels that are compiled when they are first needed, by the compiler that comes with torch (NVRTC).

Source: the documentation of cuda.bindings (nvrtc, driver), which torch needs itself.
"""

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib import import_module, resources
from typing import Any

import torch
from torch import Tensor

SHARED_BYTES = 48 * 1024  # of memory that the threads of a block share, on every GPU

Argument = Tensor | int | float | None  # a tensor in rows, or None, is a pointer
TYPES = {int: ctypes.c_int, float: ctypes.c_float}


@cache
def available() -> bool:
    """Whether kernels can be compiled here, and started: tried once with one that does nothing."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    try:
        _compile(b'extern "C" __global__ void nothing() {}', "nothing.cu", {}, _architecture())
    except (ImportError, RuntimeError):  # also what the compiler's library says that is not found
        return False
    return True


class Kernels:
    """The kernels of one source, for the GPU that is current when it is made."""

    def __init__(self, package: str, file: str, defines: Mapping[str, int]) -> None:
        self._driver: Any = import_module("cuda.bindings.driver")
        self._module = _checked(self._driver.cuModuleLoadData(compiled(package, file, defines, _architecture())))
        self._found: dict[str, Any] = {}

    def __call__(self, name: str, blocks: tuple[int, int, int], threads: int, *arguments: Argument) -> None:
        """Start a kernel on the current stream."""
        if name not in self._found:
            self._found[name] = _checked(self._driver.cuModuleGetFunction(self._module, name.encode()))
        values = tuple(_pointer(one) if one is None or isinstance(one, Tensor) else one for one in arguments)
        types = tuple(TYPES.get(type(one), ctypes.c_void_p) for one in arguments)
        stream = torch.cuda.current_stream().cuda_stream
        _checked(self._driver.cuLaunchKernel(self._found[name], *blocks, threads, 1, 1, 0, stream, (values, types), 0))


def compiled(package: str, file: str, defines: Mapping[str, int], architecture: str) -> bytes:
    """Code for an architecture such as sm_90, from a file of a package; needs no GPU.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    return _compile(resources.files(package).joinpath(file).read_bytes(), file, defines, architecture)


def _compile(source: bytes, file: str, defines: Mapping[str, int], architecture: str) -> bytes:
    nvrtc: Any = import_module("cuda.bindings.nvrtc")
    program = _checked(nvrtc.nvrtcCreateProgram(source, file.encode(), 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in defines.items()]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode())
    code: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _architecture() -> str:
    """That of the current GPU."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _pointer(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_contiguous(), "a kernel's tensors are in rows"
    return tensor.data_ptr()


def _checked(results: tuple[Any, ...]) -> Any:
    """What a call of cuda.bindings gave, without its status."""
    status, *values = results
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
