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
REFUSALS = {f"CUDA_ERROR_INVALID_{what}" for what in ("VALUE", "IMAGE", "CONTEXT", "PTX", "SOURCE", "HANDLE")}
NOTHING = b'extern "C" __global__ void nothing() {}'
TYPES = {int: ctypes.c_int, float: ctypes.c_float}


def available(device: torch.device) -> bool:
    """Whether kernels can be compiled for this device, and started."""
    return not unavailable(device)


@cache
def unavailable(device: torch.device) -> str:
    """Why they cannot; empty if they can. Tried once with one that does nothing."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it is no device of CUDA's"
    try:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # makes the context, if this is the first that the process does there
            Kernels(_compile(NOTHING, "nothing.cu", {}, architecture(device)), device)("nothing", (1, 1, 1), 1)
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, AssertionError) as error:  # cuda.bindings, the compiler or a driver is missing
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


class Kernels:
    """Kernels on a device, of what `compiled` gave for its architecture."""

    def __init__(self, code: bytes, device: torch.device) -> None:
        self._driver: Any = import_module("cuda.bindings.driver")
        self._device = device
        with torch.cuda.device(device):
            self._module = _done(self._driver.cuModuleLoadData(code))
        self._found: dict[str, Any] = {}

    def __call__(self, name: str, blocks: tuple[int, int, int], threads: int, *arguments: Argument) -> None:
        """Start a kernel on the device's current stream.

        Raises:
            torch.OutOfMemoryError: the driver has no memory for it.
            torch.AcceleratorError: the device has failed.
        """
        values = tuple(_pointer(one) if one is None or isinstance(one, Tensor) else one for one in arguments)
        types = tuple(TYPES.get(type(one), ctypes.c_void_p) for one in arguments)
        with torch.cuda.device(self._device):  # others may be current, and their context the driver's
            if name not in self._found:
                self._found[name] = _done(self._driver.cuModuleGetFunction(self._module, name.encode()))
            size, stream = (*blocks, threads, 1, 1), torch.cuda.current_stream().cuda_stream
            _done(self._driver.cuLaunchKernel(self._found[name], *size, 0, stream, (values, types), 0))


def compiled(package: str, file: str, defines: Mapping[str, int], target: str) -> bytes:
    """Code for an architecture, from a file of a package; needs no GPU.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    return _compile(resources.files(package).joinpath(file).read_bytes(), file, defines, target)


def _compile(source: bytes, file: str, defines: Mapping[str, int], target: str) -> bytes:
    nvrtc: Any = import_module("cuda.bindings.nvrtc")
    program = _checked(nvrtc.nvrtcCreateProgram(source, file.encode(), 0, [], []))
    options = [f"--gpu-architecture={target}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in defines.items()]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode())
    code: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def architecture(device: torch.device) -> str:
    """Such as sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _pointer(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_contiguous(), "a kernel's tensors are in rows"
    return tensor.data_ptr()


def _done(results: tuple[Any, ...]) -> Any:
    """What a call of the driver gave."""
    status = results[0]
    if status.name == "CUDA_ERROR_OUT_OF_MEMORY":
        raise torch.OutOfMemoryError("CUDA out of memory: the driver has none left for a kernel")
    if int(status) and status.name not in REFUSALS:
        raise torch.AcceleratorError(f"CUDA: {status.name}")
    return _checked(results)


def _checked(results: tuple[Any, ...]) -> Any:
    """What a call of cuda.bindings gave, without its status."""
    status, *values = results
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
