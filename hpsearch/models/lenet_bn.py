"""lenet-bn: LeNet-5 with one more fully connected layer, and batch normalisation after the convolution block."""

from torch import Tensor, nn

from hpsearch.models.lenet import convolutions, f6_width, pooling


class LeNet5BatchNorm(nn.Module):
    """(B, C, H, W) -> (B, num_classes); `hidden_width` is C5, F6 follows, F7 is as wide as F6.

    Dropout comes after C5, F6 and F7; `native_size` as in LeNet5.
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
        self.norm = nn.BatchNorm2d(16)
        self.pool, num_inputs = pooling(input_shape, native_size)
        self.c5 = nn.Linear(num_inputs, hidden_width)
        self.f6 = nn.Linear(hidden_width, f6)
        self.f7 = nn.Linear(f6, f6)
        self.output = nn.Linear(f6, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.norm(self.features(images))).flatten(1)
        for layer in (self.c5, self.f6, self.f7):
            x = self.dropout(layer(x).tanh())
        logits: Tensor = self.output(x)
        return logits
