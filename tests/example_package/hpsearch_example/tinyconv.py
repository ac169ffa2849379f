"""tinyconv: one convolution, and the mean of each of its maps. A network is an nn.Module for a single trial."""

from torch import Tensor, nn


class TinyConv(nn.Module):
    """(B, C, H, W) float32, normalised -> logits (B, num_classes).

    A constructor gets the shape (C, H, W) of the images, the number of classes, and by keyword those hyperparameters
    of the study that it names here: any of `hidden_width` and `dropout`. A study that sets one which the network does
    not take is refused. The weights are drawn as usual: hpsearch has set the seed of the trial before.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, *, hidden_width: int = 16) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(input_shape[0], hidden_width, kernel_size=5, stride=2)
        self.output = nn.Linear(hidden_width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images).relu()  # (B, hidden_width, h, w)
        logits: Tensor = self.output(maps.mean(dim=(2, 3)))
        return logits
