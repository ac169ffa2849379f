"""stripes: drawn pictures of horizontal and of vertical stripes. A data set is a function that reads training images.

hpsearch splits what it returns into a training and a validation part, and keeps both in a cache: the function is
called again when this file, the version of the package or the study's image_size changes.
"""

import numpy as np

from hpsearch.data.images import RawImages, Source, refuse_argument

IMAGES_PER_CLASS = 200
NOISE = 60.0  # standard deviation of the grey values, of 255
SEED = 0  # the same images on every machine


def read_train(source: Source) -> RawImages:
    """Images uint8 (N, C, H, H) with C 1 or 3, labels int64 (N,), and the names of the classes.

    H is `source.image_size`, or another size of 8 to 4096 pixels: all images are as high as wide.

    Return the training part only, and leave your test images alone. Files of your own lie under `source.data_dir`
    (HPSEARCH_DATA); raise hpsearch.errors.DataError, with one sentence, if they do not.
    """
    refuse_argument(source)  # "stripes:something" means nothing here
    random = np.random.default_rng(SEED)
    labels = np.repeat(np.arange(2), IMAGES_PER_CLASS)
    clean = np.stack([_stripes(random, source.image_size, vertical=bool(label)) for label in labels])
    noisy = clean + random.normal(0.0, NOISE, clean.shape)
    images = np.clip(noisy, 0, 255).astype(np.uint8)[:, None]  # (N, 1, H, W)
    return RawImages(images, labels, classes=("horizontal", "vertical"))


def _stripes(random: np.random.Generator, image_size: int, *, vertical: bool) -> np.ndarray:
    """One picture (image_size, image_size) of grey values 0 to 255, with the stripes at a random place."""
    phase, period = random.uniform(0, 2 * np.pi), random.uniform(3, 8)  # pixels
    wave = 127.5 + 127.5 * np.sin(2 * np.pi * np.arange(image_size) / period + phase)
    picture = np.broadcast_to(wave, (image_size, image_size))
    return picture if vertical else picture.T
