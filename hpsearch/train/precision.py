"""The precision of a step, set for it alone and put back: float32, TF32 or bfloat16.

Parameters, gradients, optimizer buffers and sums are float32 in all of them. Validation, and whatever else looks at a
trained network, computes in float32: what is reported of a trial is then what the float32 weights of its checkpoint and
its export give anywhere, on a CPU as well, and two precisions differ by what they train alone.

Sources: "Automatic Mixed Precision package" and the note "CUDA semantics", section "TensorFloat-32", in torch's
documentation.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

EVALUATION = "float32"  # the precision of everything but training steps


@contextmanager
def multiplying(precision: str, device: torch.device) -> Iterator[None]:
    """A block in which a GPU multiplies float32 by float32 in TF32, if `precision` is that, and else in float32.

    TF32 keeps 10 of the 23 bits of the factors' mantissas. Left alone, torch convolves in TF32 and multiplies matrices
    in float32. Backward passes belong into the block. A CPU has no TF32: there nothing changes.
    """
    backends: Any = torch.backends  # whose settings are the process's: other trials in it must not feel these
    settings = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn) if device.type == "cuda" else ()
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A block for forward pass and loss: under bfloat16 layers compute in that, losses in float32.

    Backward passes belong outside; their products have the precision of the forward pass. bfloat16 has the range of
    float32 and 7 bits of mantissa, so that gradients need no scaling. Under torch.func a layer's bias is added to the
    product in float32: what such lanes keep for the backward pass is float32, unlike alone.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
