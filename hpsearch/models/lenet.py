"""lenet: LeNet-5 as published, for images of any size from 16 x 16 on.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998, figure 2.
As there, what a convolution gives is squashed and then pooled. Differences, as usual today: every map of the second
convolution sees all six maps of the first, the average pooling has no weights and squashes nothing, and the output
layer is linear, for cross-entropy.
"""

from collections import OrderedDict

from torch import Tensor, nn

from hpsearch.errors import DataError
from hpsearch.models.layers import SquashedConv2d

SMALLEST = 16  # pixels: two 5 x 5 convolutions, each with pooling, leave one
F6_SHARE = 0.7  # F6 has 84 units for the 120 of C5


class LeNet5(nn.Module):
    """(B, C, H, W) -> (B, num_classes); `hidden_width` is C5, F6 follows. Dropout comes after C5 and F6.

    With `native_size`, C5 is as for images of that size: the maps of other ones are pooled adaptively before it.
    """

    pads_with_zeros = True  # a unit whose weights are all zero stays out of the way for ever
    own_randomness = False  # nothing random but nn.Dropout, so that trials may train in threads
    static_graph = True  # every step does the same, so that it may be recorded

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden_width: int = 120,
        dropout: float = 0.0,
        native_size: int | None = None,
    ) -> None:
        super().__init__()
        f6 = f6_width(hidden_width)
        self.features = convolutions(input_shape[0])
        self.pool, num_inputs = pooling(input_shape, native_size)
        self.c5 = nn.Linear(num_inputs, hidden_width)
        self.f6 = nn.Linear(hidden_width, f6)
        self.output = nn.Linear(f6, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.features(images)).flatten(1)
        x = self.dropout(self.c5(x).tanh())
        x = self.dropout(self.f6(x).tanh())
        logits: Tensor = self.output(x)
        return logits


def convolutions(channels: int) -> nn.Sequential:
    """C1 to S4: (B, C, H, W) -> (B, 16, h, w); 5 x 5 for 32 x 32."""
    return nn.Sequential(OrderedDict(c1=SquashedConv2d(channels, 6, 5), c3=SquashedConv2d(6, 16, 5)))


def pooling(input_shape: tuple[int, int, int], native_size: int | None) -> tuple[nn.Module, int]:
    """What stands between the convolutions and C5, and the values that C5 then gets of one image."""
    if native_size is None:
        return nn.Identity(), num_features(input_shape)
    num_features(input_shape)  # refuses images that are too small
    side = _after(native_size)
    return nn.AdaptiveAvgPool2d(side), num_features((input_shape[0], native_size, native_size))


def num_features(input_shape: tuple[int, int, int]) -> int:
    """Values that `convolutions` leaves of one image. Raises DataError if it is too small."""
    _, height, width = input_shape
    if min(height, width) < SMALLEST:
        raise DataError(
            f"lenet: images of {height} x {width} pixels are too small, at least {SMALLEST} x {SMALLEST} are needed; "
            "set data.image_size, or use 2lp or 3lp"
        )
    return 16 * _after(height) * _after(width)


def f6_width(hidden_width: int) -> int:
    return max(1, round(F6_SHARE * hidden_width))


def _after(pixels: int) -> int:
    """One side after two convolutions and poolings."""
    return ((pixels - 4) // 2 - 4) // 2
