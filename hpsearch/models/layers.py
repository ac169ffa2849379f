"""A convolution and the average pooling after it as one layer with a third of the arithmetic."""

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
