"""Layers that compute what torch's own do, with less memory traffic."""

import torch
from torch import Tensor, nn


class WideLinear(nn.Linear):
    """nn.Linear for a large weight, whose gradient may be taken as its two factors.

    The gradient of the weight (O, I) is the product of the output's gradient (B, O) and the input (B, I). For 3 million
    weights and a batch of 64 the factors are a fiftieth of the product, and moving that through memory takes a CPU as
    long as computing it. While `factors` is a list, backward appends the two factors to it and leaves the weight's
    gradient out; they are float32 also where autocast has the layer compute in bfloat16.
    """

    factors: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.factors is None or not torch.is_grad_enabled():
            return super().forward(inputs)
        factors, detached = self.factors, inputs.detach()
        weight = self.weight.detach()  # first in the product: two cores share that better than functional.linear's
        columns = inputs.T
        outputs = (weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], weight, columns)).T
        outputs.register_hook(lambda gradient: factors.append((gradient.float(), detached.float())))  # type: ignore[no-untyped-call]
        return outputs
