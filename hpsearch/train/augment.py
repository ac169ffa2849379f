"""Augmentation of blocks of images in memory, with separate random numbers for every image.

Image by image, and given the same draws, `paper` and `crop-flip` equal torchvision.transforms.functional on float
tensors up to rounding. There is no Python branch on the draws, so nothing waits for a GPU.

Axes: N images, C channels (1 or 3), H, W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hpsearch.train.device_data import constant, send

Draws = dict[str, Tensor]  # name of the draw -> (N, ...), one row for each image

FLIP_PROBABILITY = {"paper": 0.1, "crop-flip": 0.5}
ROTATION_DEGREES = 20.0  # paper: uniform in +-20
SHARPEN_PROBABILITY = 0.1  # paper
JITTER = 0.1  # paper: brightness, contrast and saturation factors uniform in 1 +- 0.1
PADDING = 4  # crop-flip: pixels on each side
ORDERS = (  # the draw `order` is a row of this: brightness, contrast, saturation, by their first letters
    "bcs",
    "bsc",
    "cbs",
    "csb",
    "sbc",
    "scb",
)
PLACES = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1))  # of brightness and contrast in _jitter's chain, by order
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights; they add up to 0.9999, and so they must here
WHITE = 255.0  # all arithmetic before normalisation is on the scale of the uint8 images
BLOCK = 256  # images at a time on a CPU: 3 MB of float32 at 3 x 32 x 32 stay in its cache from one step to the next


def draw(name: str, num_images: int, seed: int, device: torch.device | str = "cpu") -> Draws:
    """The random numbers of `num_images` images, a pure function of name, number and seed.

    Drawn on the CPU, so that they are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(num_images, generator=generator) * (high - low) + low  # (N,)

    draws: Draws = {}
    if name in FLIP_PROBABILITY:
        draws["flip"] = uniform(0, 1) < FLIP_PROBABILITY[name]
    if name == "paper":
        draws["angle"] = uniform(-ROTATION_DEGREES, ROTATION_DEGREES)
        draws["sharpen"] = uniform(0, 1) < SHARPEN_PROBABILITY
        for factor in ("brightness", "contrast", "saturation"):
            draws[factor] = uniform(1 - JITTER, 1 + JITTER)
        draws["order"] = torch.randint(len(ORDERS), (num_images,), generator=generator)
    if name == "crop-flip":
        draws["corner"] = torch.randint(2 * PADDING + 1, (num_images, 2), generator=generator)  # top, left
    return {key: send(value, device) for key, value in draws.items()}


def augment(
    name: str,
    images: Tensor,
    draws: Draws,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Images uint8 (N, C, H, W) as float32 (N, C, H, W), augmented, then normalised by `mean` and `std` (0..1).

    `out` is filled and returned if given: fresh memory costs about as much as a step of the work.
    """
    if out is None:
        out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    plan, change = STEPS[name]
    planned = plan(draws, images)  # all that needs no pixels, for all images at once: small operations are slow
    gain, shift = _normalisation(mean, std, images.device)
    step = BLOCK if images.device.type == "cpu" else max(1, len(images))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        changed, scale, offset = change(images[rows], {key: value[rows] for key, value in planned.items()})
        torch.mul(changed, gain * scale, out=out[rows]).add_(gain * offset + shift)
    return out


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 (N, C, H, W) as float32 of zero mean and unit deviation; `mean` and `std` per channel, 0..1."""
    return augment("none", images, {}, mean, std)


def _normalisation(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """(gain, shift), (C, 1, 1) each: uint8 * gain + shift == (uint8 / 255 - mean) / std."""
    gain = tuple(1 / (WHITE * deviation) for deviation in std)
    shift = tuple(-centre / deviation for centre, deviation in zip(mean, std, strict=True))
    return constant(gain, device)[:, None, None], constant(shift, device)[:, None, None]


# A plan turns the draws into tensors with one row for each image. A change turns a block of uint8 images and its rows
# of the plan into pixels, on a scale for each image: the true value, 0..255, is pixels * scale + offset.
Plan = dict[str, Tensor]
Changed = tuple[Tensor, Tensor | float, Tensor | float]


def _plan_none(draws: Draws, images: Tensor) -> Plan:
    return {}


def _change_none(images: Tensor, plan: Plan) -> Changed:
    return images, 1.0, 0.0


def _plan_crop_flip(draws: Draws, images: Tensor) -> Plan:
    """Pad with black, crop to the old size, flip some."""
    top, left = (draws["corner"] - PADDING).float().unbind(-1)  # (N,), pixels
    mirror = 1 - 2 * draws["flip"].float()
    zero, one = torch.zeros_like(top), torch.ones_like(top)
    return {"motion": _motion([mirror, zero, left], [zero, one, top], images)}


def _change_crop_flip(images: Tensor, plan: Plan) -> Changed:
    return _sample(images.float(), plan["motion"]), 1.0, 0.0


def _plan_paper(draws: Draws, images: Tensor) -> Plan:
    """Flip and rotate, sharpen some, jitter the colours."""
    angle = draws["angle"].double().deg2rad()  # (N,); double as torchvision's matrix
    cos, sin = angle.cos().float(), angle.sin().float()
    mirror = 1 - 2 * draws["flip"].float()  # flipped before it is turned: the source column runs backwards
    zero = torch.zeros_like(cos)
    motion = _motion([mirror * cos, -mirror * sin, zero], [sin, cos, zero], images)
    return {"motion": motion, "sharpen": draws["sharpen"], **_plan_jitter(draws, images)}


def _change_paper(images: Tensor, plan: Plan) -> Changed:
    moved = _sample(images.float(), plan["motion"])
    _sharpen(moved, plan["sharpen"])
    return _jitter(moved, plan)


STEPS = {
    "none": (_plan_none, _change_none),
    "paper": (_plan_paper, _change_paper),
    "crop-flip": (_plan_crop_flip, _change_crop_flip),
}


def _motion(source_x: Sequence[Tensor], source_y: Sequence[Tensor], images: Tensor) -> Tensor:
    """Coefficients of (x, y, 1), pixels from the centre, as (N, 2, 3) in half images, the unit of grid_sample."""
    height, width = images.shape[-2:]
    return torch.stack([torch.stack([*source_x], -1) / (width / 2), torch.stack([*source_y], -1) / (height / 2)], 1)


def _sample(images: Tensor, motion: Tensor) -> Tensor:
    """Each output pixel from the nearest source pixel, black outside.

    The grid has its coordinates in planes, which the sampling reads faster than pairs, and is a sum of a row and a
    column: more than ten times faster than affine_grid on a CPU, and in full precision on every GPU.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    across = motion[..., 0:1] * x  # (N, 2, W)
    down = motion[..., 1:2] * y + motion[..., 2:3]  # (N, 2, H)
    grid = across[..., None, :] + down[..., :, None]  # (N, 2, H, W)
    return functional.grid_sample(images, grid.permute(0, 2, 3, 1), mode="nearest", align_corners=False)


def _sharpen(images: Tensor, chosen: Tensor) -> None:
    """Adjust the sharpness of the `chosen` images (N,) by the factor 2, in place."""
    if images.device.type == "cpu":  # a tenth of the images; on a GPU finding them costs more than all the work
        rows = chosen.nonzero()[:, 0]
        images.index_copy_(0, rows, _sharpened(images.index_select(0, rows)))
    else:
        torch.where(chosen[:, None, None, None], _sharpened(images), images, out=images)


def _sharpened(images: Tensor) -> Tensor:
    """Twice the image less its smoothing (3 x 3, weights 1, centre 5, over 13); the border stays, as in torchvision."""
    lines = images[..., :-2] + images[..., 1:-1]
    lines += images[..., 2:]  # (N, C, H, W - 2)
    smooth = lines[..., :-2, :] + lines[..., 1:-1, :]
    smooth += lines[..., 2:, :]  # (N, C, H - 2, W - 2): all nine weights 1
    inside = images[..., 1:-1, 1:-1] * (2 - 4 / 13)
    result = images.clone()
    result[..., 1:-1, 1:-1] = inside.sub_(smooth, alpha=1 / 13).clamp_(0, WHITE)
    return result


def _plan_jitter(draws: Draws, images: Tensor) -> Plan:
    """Brightness, contrast, saturation in the drawn order; each is an affine map and a cut-off to 0..255.

    All six orders are one chain, in which an order leaves the places that it does not use at the factor 1:
    brightness, contrast, brightness, saturation, brightness, contrast, brightness. `_cut` does the three before and
    the three after the saturation; it needs a ceiling before the mean is taken, the contrast, and a ceiling after it.
    """
    channels, device = images.shape[1], images.device
    weights = constant(GREY if channels == 3 else (1.0,), device)  # (C,)
    places = constant(PLACES, device)[draws["order"]]  # (N, 2)
    ones = torch.ones(len(places), 4, device=device)
    b = ones.scatter(1, places[:, :1], draws["brightness"][:, None]).view(-1, 2, 2)  # (N, half, first or second)
    c = ones[:, :2].scatter(1, places[:, 1:], draws["contrast"][:, None])  # (N, half)
    scale = c * b.prod(-1)  # (N, half)
    ceiling_before = WHITE / b[..., 0].clamp(min=1)
    ceiling_after = WHITE * b[..., 1] / b[..., 1].clamp(min=1) / scale
    s = draws["saturation"] if channels == 3 else ones[:, 0]  # torchvision leaves grey images alone
    mix = _each(s) * torch.eye(channels, device=device) + _each(1 - s) * weights  # (N, C, C)
    mix = mix * _each(scale[:, 0])
    return {
        "weights": weights.expand(len(c), -1),
        "ceiling_before": ceiling_before,
        "contrast": (1 - c) / c,
        "ceiling_after": ceiling_after,
        "mix": mix,
        "mixed_one": mix[:, 0].sum(-1),
        "scale": scale[:, 1],
    }


def _jitter(images: Tensor, plan: Plan) -> Changed:
    """The chain of `_plan_jitter`, in place; constants are carried along as a zero level, the pixel value of black."""
    x = images.view(*images.shape[:2], -1)  # (N, C, H * W)
    zero = _cut(x, plan, 0, torch.zeros_like(plan["scale"]))  # (N,)
    x = torch.bmm(plan["mix"], x)
    zero = zero * plan["mixed_one"]
    torch.maximum(x, _each(zero), out=x)
    zero = _cut(x, plan, 1, zero)
    scale = _each(plan["scale"])[..., None]
    return x.view_as(images), scale, -scale * _each(zero)[..., None]


def _cut(x: Tensor, plan: Plan, half: int, zero: Tensor) -> Tensor:
    """The cut-offs of brightness, contrast and brightness for x (N, C, H * W), in place; the new zero level (N,).

    The maps between the cut-offs are not made: they move the bounds instead, and change scale and zero level.
    """
    torch.minimum(x, _each(zero + plan["ceiling_before"][:, half]), out=x)
    grey = (x.mean(-1) * plan["weights"]).sum(-1)  # (N,): contrast is the distance from it
    zero = zero - plan["contrast"][:, half] * (grey - zero * plan["weights"].sum(-1))
    torch.maximum(x, _each(zero), out=x)
    torch.minimum(x, _each(zero + plan["ceiling_after"][:, half]), out=x)
    return zero


def _each(values: Tensor) -> Tensor:
    """One value for each image (N,) as (N, 1, 1)."""
    return values[:, None, None]
