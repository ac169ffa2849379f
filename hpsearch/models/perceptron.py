"""2lp and 3lp: perceptrons with one and two hidden ReLU layers on the flattened image.

With `native_size` they are as for images of that size: other ones are pooled down to it first.
"""

from math import prod

from torch import Tensor, nn

from hpsearch.models.layers import WideLinear


class TwoLayerPerceptron(nn.Module):
    """(B, C, H, W) -> (B, num_classes) through one hidden layer of `hidden_width` units, then dropout."""

    pads_with_zeros = True  # a unit whose weights are all zero stays out of the way for ever
    own_randomness = False  # nothing random but nn.Dropout, so that trials may train in threads
    static_graph = True  # every step does the same, so that it may be recorded

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden_width: int = 1024,
        dropout: float = 0.0,
        native_size: int | None = None,
    ) -> None:
        super().__init__()
        self.pool, num_inputs = pooling(input_shape, native_size)
        self.hidden = WideLinear(num_inputs, hidden_width)
        self.output = nn.Linear(hidden_width, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.hidden(self.pool(images).flatten(1)).relu())
        logits: Tensor = self.output(x)
        return logits


class ThreeLayerPerceptron(nn.Module):
    """(B, C, H, W) -> (B, num_classes) through two hidden layers of `hidden_width` units, each with dropout."""

    pads_with_zeros = True  # a unit whose weights are all zero stays out of the way for ever
    own_randomness = False  # nothing random but nn.Dropout, so that trials may train in threads
    static_graph = True  # every step does the same, so that it may be recorded

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden_width: int = 1024,
        dropout: float = 0.5,
        native_size: int | None = None,
    ) -> None:
        super().__init__()
        self.pool, num_inputs = pooling(input_shape, native_size)
        self.hidden1 = WideLinear(num_inputs, hidden_width)
        self.hidden2 = WideLinear(hidden_width, hidden_width)
        self.output = nn.Linear(hidden_width, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.hidden1(self.pool(images).flatten(1)).relu())
        x = self.dropout(self.hidden2(x).relu())
        logits: Tensor = self.output(x)
        return logits


def pooling(input_shape: tuple[int, int, int], native_size: int | None) -> tuple[nn.Module, int]:
    """What stands before the first layer, and the values that it then gets of one image."""
    if native_size is None:
        return nn.Identity(), prod(input_shape)
    return nn.AdaptiveAvgPool2d(native_size), input_shape[0] * native_size**2
