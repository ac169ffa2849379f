"""Layers that compute what torch's own do, with less arithmetic or less memory traffic."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PooledConv2d(nn.Conv2d):
    """(B, C, H, W) -> (B, O, h, w): what nn.Conv2d and then nn.AvgPool2d(2) give, with nn.Conv2d's parameters.

    Both are linear: the mean of four neighbouring outputs is the output of the mean of the four shifted kernels. For
    5 x 5 weights that is one 6 x 6 convolution with stride 2, 36 products for four times 25, and the full-size map
    and its gradient are never stored.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, images: Tensor) -> Tensor:
        kernel = functional.avg_pool2d(functional.pad(self.weight, (1, 1, 1, 1)), 2, stride=1)
        return functional.conv2d(images, kernel, self.bias, stride=2)


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
