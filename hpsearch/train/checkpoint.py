"""A program's state as bytes and back: tensors and whole numbers in the safetensors format, nothing executable."""

import json
from collections.abc import Mapping

from safetensors.torch import load, save
from torch import Tensor

State = Mapping[str, Tensor | int]

NUMBERS = "numbers"  # the key of the file's header under which the numbers stand, as JSON


def to_bytes(state: State) -> bytes:
    """The state as a safetensors file; tensors are copied to the CPU."""
    tensors = {key: value.contiguous().cpu() for key, value in state.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return save(tensors, metadata={NUMBERS: json.dumps(numbers)})


def from_bytes(content: bytes) -> dict[str, Tensor | int]:
    """The state that `to_bytes` wrote.

    Raises:
        ValueError: the content is no such file.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        numbers = json.loads(header["__metadata__"][NUMBERS])
        return {**load(content), **numbers}
    except Exception as error:
        raise ValueError(f"not a checkpoint: {error}") from error
