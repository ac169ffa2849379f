"""Sample images of a study's training part, as one picture inside the page."""

import base64
import io

import numpy as np
from PIL import Image

from hpsearch.data.load import DataSet, at_hand, load
from hpsearch.errors import DataError
from hpsearch.report.drawing import Cell, Figure
from hpsearch.report.gather import Gathered
from hpsearch.settings import Settings

CLASSES, EACH = 12, 4  # at most so many classes, each with so many images
SIDE = 48  # pixels at which an image is shown at least


def samples(study: Gathered, settings: Settings) -> Figure:
    """The first images of the first classes; a sentence instead where the data is not at hand."""
    spec = study.spec
    key, title = f"{study.name}-images", "Sample images"
    try:
        found = _found(study, settings)
    except DataError as error:
        return Figure(key, title, f"No images: {error}", ["class", "row"], [], html="<p>-</p>")
    names = found.classes[:CLASSES]
    picked = [(label, np.flatnonzero(found.train_labels == label)[:EACH]) for label in range(len(names))]
    height, width = found.train_images.shape[2:]
    sheet = np.full((3, EACH * height, len(names) * width), 255, np.uint8)
    for column, members in picked:
        for place, row in enumerate(members):
            down, right = place * height, column * width
            sheet[:, down : down + height, right : right + width] = found.train_images[row]
    picture = Image.fromarray(sheet.transpose(1, 2, 0))
    zoom = max(1, SIDE // height)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    encoded = base64.b64encode(content.getvalue()).decode()
    rest = "" if len(names) == len(found.classes) else f" (the first {len(names)} of {len(found.classes)} classes)"
    caption = (
        f"{spec.data.name}, {height} x {width} pixels: {len(found.train_labels)} images train, "
        f"{len(found.validation_labels)} validate. Columns{rest}: {', '.join(names)}."
    )
    rows: list[list[Cell]] = [[names[label], int(row)] for label, members in picked for row in members]
    drawn = f'<div class="scroll"><img class="sheet" src="data:image/png;base64,{encoded}" alt="sample images"></div>'
    return Figure(key, title, caption, ["class", "row"], rows, html=drawn)


def _found(study: Gathered, settings: Settings) -> DataSet:
    """The data set on which the study's trials train, without a download."""
    data, size, cache = study.spec.data.name, study.spec.data.image_size, settings.datasets
    if not at_hand(data, data_dir=settings.data_dir, cache_dir=cache, image_size=size):
        raise DataError(f"{data} is not here, and a report downloads nothing; say where it is with --data-dir.")
    found = load(data, data_dir=settings.data_dir, cache_dir=cache, image_size=size)
    if study.images not in (None, found.fingerprint):
        raise DataError(f"{data} here has other images than those that the study's trials train on.")
    return found
