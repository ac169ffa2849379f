"""An export as a network in one's own program: `hpsearch.load_export(FOLDER)`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor, nn

from hpsearch.data.folder import pixels
from hpsearch.data.images import resized
from hpsearch.errors import UsageError
from hpsearch.export import build, read
from hpsearch.export_schema import Metrics

LESS = ("JPEG", "MPO")  # formats of which Pillow can read less than the whole


class Exported(nn.Module):
    """The network of an export with its preprocessing: `exported(exported.preprocess(image))` are logits (B, k).

    `classes` says what the outputs stand for, `metrics` holds the evidence. It is in evaluation mode; its parameters
    can be trained on.
    """

    mean: Tensor  # (C, 1, 1)
    std: Tensor

    def __init__(self, network: nn.Module, metrics: Metrics) -> None:
        super().__init__()
        self.network, self.metrics, self.classes = network, metrics, tuple(metrics.model.classes)
        self.register_buffer("mean", torch.tensor(metrics.preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(metrics.preprocessing.std)[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, k) of what `preprocess` gave."""
        logits: Tensor = self.network(images)
        return logits

    def preprocess(self, images: Any) -> Tensor:
        """The network's input (B, C, H, W): resized, scaled, normalised, as in training.

        `images` is a PIL image, or uint8 (C, H, W) or (B, C, H, W) as a tensor or an array.
        Raises UsageError if the number of channels is another one, or if it is no such thing.
        """
        wanted = self.metrics.preprocessing
        if isinstance(images, Image.Image):
            images = pixels(_apart(images), wanted.image_size, "RGB" if wanted.channels == 3 else "L")
        array = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        array = array[None] if array.ndim == 3 else array
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != wanted.channels or 0 in array.shape[2:]:
            raise UsageError(
                f"images {array.dtype} {array.shape}: must be uint8 (B, {wanted.channels}, H, W), as the network was "
                f"trained on images of {wanted.channels} channel(s); or give a PIL image"
            )
        values = torch.from_numpy(resized(array, wanted.image_size).copy()).to(self.mean.device)
        return ((values / 255 - self.mean.float()) / self.std.float()).to(self.mean.dtype)  # that of the network

    @torch.inference_mode()
    def classify(self, images: Any) -> list[str]:
        """The class of each image, as `preprocess` takes them."""
        prepared = self.preprocess(images)
        return [self.classes[place] for place in self(prepared).argmax(1).tolist()] if len(prepared) else []


def _apart(image: Image.Image) -> Image.Image:
    """The image, of which `pixels` may read as little as it needs: the caller's own only if it is read as a whole."""
    if isinstance(image, ImageFile) and image.fp and image.tile and not image.tell() and image.format in LESS:
        return Image.open(image.fp)  # so that it gives the same again
    image.load()
    return image


def load_export(folder: str | Path) -> Exported:
    """The network of the export in `folder`, or in s3://BUCKET/PREFIX, its checksums and schema checked.

    Raises UsageError if it is damaged or of a newer hpsearch.
    """
    metrics, _, tensors = read(folder)
    return Exported(build(metrics, tensors, folder), metrics)
