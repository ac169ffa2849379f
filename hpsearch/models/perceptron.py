"""2lp and 3lp: perceptrons with one and two hidden ReLU layers on the flattened image."""

from math import prod

from torch import Tensor, nn

from hpsearch.models.layers import Dropout, WideLinear


class TwoLayerPerceptron(nn.Module):
    """(B, C, H, W) -> (B, num_classes) through one hidden layer of `hidden_width` units, then dropout."""

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, *, hidden_width: int = 1024, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = WideLinear(prod(input_shape), hidden_width)
        self.output = nn.Linear(hidden_width, num_classes)
        self.dropout = Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.hidden(images.flatten(1)).relu())
        logits: Tensor = self.output(x)
        return logits


class ThreeLayerPerceptron(nn.Module):
    """(B, C, H, W) -> (B, num_classes) through two hidden layers of `hidden_width` units, each with dropout."""

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, *, hidden_width: int = 1024, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.hidden1 = WideLinear(prod(input_shape), hidden_width)
        self.hidden2 = WideLinear(hidden_width, hidden_width)
        self.output = nn.Linear(hidden_width, num_classes)
        self.dropout = Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.hidden1(images.flatten(1)).relu())
        x = self.dropout(self.hidden2(x).relu())
        logits: Tensor = self.output(x)
        return logits
