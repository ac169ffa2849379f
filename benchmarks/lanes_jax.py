"""The strongest thing that one could write instead of lanes: the same training vmapped over K trials in JAX, compiled.

Run by benchmarks/throughput.py in a process of its own; alone, with any Python that has jax and numpy:
    python benchmarks/lanes_jax.py FOLDER --model lenet --batch-size 64 --lanes 16 64 --seconds 5
    python benchmarks/lanes_jax.py FOLDER --lanes 2 --epochs 3      prints loss and accuracy instead of speed
FOLDER holds train_images.npy (uint8, N x 3 x 32 x 32), train_labels.npy, validation_images.npy, validation_labels.npy.

One compiled function is an epoch: order, augmentation in blocks of 2,048 images shared by all lanes, a scan over the
steps of each block, validation. Networks, initialisation, optimizer, schedule and clipping are those of the other
sides. A JSON line for each K: seconds, and the images in them; bytes of the device's memory at its peak.

Axes: K lanes, N images, B batch, C channels, H, W.
"""

import argparse
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax import lax
except ImportError:
    sys.exit("jax is not installed")

Array = Any  # jax.Array, whose types are not installed where this is checked
BLOCK, VALIDATION_BATCH, NUM_CLASSES, EPOCHS = 2048, 500, 100, 100
WHITE = 255.0
MEAN = np.array([0.507, 0.487, 0.441], np.float32)[:, None, None]
STD = np.array([0.267, 0.256, 0.276], np.float32)[:, None, None]
GREY = np.array([0.2989, 0.587, 0.114], np.float32)[:, None, None]
PLACES = np.array([(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1)])  # of brightness and contrast, by order
PEAK, CLIP_NORM, WARM_UP_SHARE, HIGH, LOW, FINAL_DIVISOR = 0.1, 1.0, 0.3, 0.95, 0.85, 1e4
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {  # weights; each with as many biases as it has rows
    "lenet": {"c1": (6, 3, 5, 5), "c3": (16, 6, 5, 5), "c5": (120, 400), "f6": (84, 120), "out": (NUM_CLASSES, 84)},
    "2lp": {"hidden": (1024, 3072), "out": (NUM_CLASSES, 1024)},
}


def augment(images: Array, key: Array) -> Array:
    """Images uint8 (N, C, H, W) as float32, varied as `paper` does, and normalised."""
    uniform = partial(jax.random.uniform, shape=(len(images),))
    keys = jax.random.split(key, 7)
    moved = rotate(images.astype(jnp.float32), uniform(keys[0]) < 0.1, jnp.deg2rad(40 * uniform(keys[1]) - 20))
    sharp = jnp.where((uniform(keys[2]) < 0.1)[:, None, None, None], sharpened(moved), moved)
    brightness, contrast, saturation = (0.9 + 0.2 * uniform(key) for key in keys[3:6])
    order = jax.random.randint(keys[6], (len(images),), 0, 6)
    return normalise(jitter(sharp, brightness, contrast, saturation, order))


def normalise(images: Array) -> Array:
    return (images / WHITE - MEAN) / STD


def rotate(images: Array, flip: Array, angle: Array) -> Array:
    """Each pixel from the nearest pixel of the flipped, then turned image; black outside."""
    size = images.shape[-1]
    centre = (size - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(size) - centre, jnp.arange(size) - centre, indexing="ij")
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    mirror = jnp.where(flip, -1.0, 1.0)[:, None, None]
    column = jnp.round(mirror * (cos * x - sin * y) + centre).astype(jnp.int32)  # (N, H, W)
    row = jnp.round(sin * x + cos * y + centre).astype(jnp.int32)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    source = jnp.where(inside, row * size + column, 0).reshape(len(images), 1, -1)
    taken = jnp.take_along_axis(images.reshape(*images.shape[:2], -1), source, axis=-1)
    return jnp.where(inside[:, None], taken.reshape(images.shape), 0.0)


def sharpened(images: Array) -> Array:
    """Twice the image less its smoothing (3 x 3, weights 1, centre 5, over 13); the border stays."""
    lines = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    smooth = lines[..., :-2, :] + lines[..., 1:-1, :] + lines[..., 2:, :]
    inner = images[..., 1:-1, 1:-1]
    return images.at[..., 1:-1, 1:-1].set(jnp.clip(2 * inner - (smooth + 4 * inner) / 13, 0, WHITE))


def jitter(images: Array, brightness: Array, contrast: Array, saturation: Array, order: Array) -> Array:
    """The six orders as one chain (b c b s b c b) in which places that an order does not use have the factor 1."""
    places = jnp.asarray(PLACES)[order]  # (N, 2)
    b = jnp.where(jnp.arange(4) == places[:, :1], brightness[:, None], 1.0)  # (N, 4)
    c = jnp.where(jnp.arange(2) == places[:, 1:], contrast[:, None], 1.0)  # (N, 2)

    def blend(x: Array, other: Array, factor: Array) -> Array:
        factor = factor[:, None, None, None]
        return jnp.clip(factor * x + (1 - factor) * other, 0, WHITE)

    def grey(x: Array) -> Array:
        return (x * GREY).sum(1, keepdims=True)  # (N, 1, H, W)

    for half in range(2):
        images = blend(images, 0.0, b[:, 2 * half])
        images = blend(images, grey(images).mean((2, 3), keepdims=True), c[:, half])
        images = blend(images, 0.0, b[:, 2 * half + 1])
        if half == 0:
            images = blend(images, grey(images), saturation)
    return images


def lenet(weights: Any, images: Array) -> Array:
    x = pooled(jnp.tanh(convolution(weights["c1"], images)))
    x = pooled(jnp.tanh(convolution(weights["c3"], x))).reshape(len(images), -1)
    x = jnp.tanh(linear(weights["c5"], x))
    return linear(weights["out"], jnp.tanh(linear(weights["f6"], x)))


def perceptron(weights: Any, images: Array) -> Array:
    hidden = jax.nn.relu(linear(weights["hidden"], images.reshape(len(images), -1)))
    return linear(weights["out"], hidden)


def convolution(layer: Any, images: Array) -> Array:
    weight, bias = layer
    return lax.conv_general_dilated(images, weight, (1, 1), "VALID") + bias[:, None, None]


def pooled(maps: Array) -> Array:
    """(B, C, 2h, 2w) -> (B, C, h, w). A mean over axes, unlike lax.reduce_window, has a gradient that XLA can fuse."""
    height, width = maps.shape[2:]
    return maps.reshape(*maps.shape[:2], height // 2, 2, width // 2, 2).mean((3, 5))


def linear(layer: Any, inputs: Array) -> Array:
    weight, bias = layer
    return inputs @ weight.T + bias


NETWORKS = {"lenet": lenet, "2lp": perceptron}


def fresh(model: str, num_lanes: int) -> Any:
    """Weights of K lanes, uniform as torch initialises them, and momentum."""
    generator = np.random.default_rng(0)
    weights = {}
    for name, shape in SHAPES[model].items():
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        sizes: list[tuple[int, ...]] = [(num_lanes, *shape), (num_lanes, shape[0])]
        weights[name] = tuple(jnp.asarray(generator.uniform(-bound, bound, size), jnp.float32) for size in sizes)
    return weights, jax.tree.map(jnp.zeros_like, weights)


def settings(step: Array, low: Array, steps_per_epoch: int) -> tuple[Array, Array]:
    """Rates (K,) and momentum () of onecycle; `low` (K,) is where the rates begin."""
    last = EPOCHS * steps_per_epoch - 1
    top = WARM_UP_SHARE * (last + 1) - 1
    up, down = step / top, (step - top) / (last - top)

    def descend(start: Any, end: Any, share: Array) -> Array:
        return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * share))

    rate = jnp.where(step <= top, descend(low, PEAK, up), descend(PEAK, low / FINAL_DIVISOR, down))
    return rate, jnp.where(step <= top, descend(HIGH, LOW, up), descend(LOW, HIGH, down))


def lanes_of(tree: Any, values: Array) -> Any:
    """Values (K,), shaped to multiply each leaf of the tree (K, ...)."""
    return jax.tree.map(lambda leaf: values.reshape(-1, *[1] * (leaf.ndim - 1)), tree)


class Population:
    """K trials on one data set; `epoch` trains them on so many blocks and the short one at the end, and validates."""

    def __init__(self, model: str, batch_size: int, num_lanes: int, arrays: dict[str, Array]) -> None:
        self.network, self.batch_size, self.arrays = NETWORKS[model], batch_size, arrays
        self.num_images = len(arrays["train_labels"])
        self.block = min(max(1, BLOCK // batch_size) * batch_size, self.num_images)
        self.num_blocks, self.rest = divmod(self.num_images, self.block)
        self.steps_per_epoch = -(-self.num_images // batch_size)
        self.validation_batch = min(VALIDATION_BATCH, len(arrays["validation_labels"]))
        self.num_validated = len(arrays["validation_labels"]) // self.validation_batch
        lanes = np.arange(num_lanes)
        self.low, self.decay = jnp.float32(0.01 / (1 + lanes % 7)), jnp.float32(1e-4 * (lanes % 3))
        self.state = fresh(model, num_lanes)
        self.compiled = jax.jit(self._epoch, donate_argnums=0)

    def epoch(self, number: int, num_blocks: int, num_validated: int) -> tuple[Array, Array]:
        """Training loss and validation accuracy, each (K,); waits for them."""
        key, first = jax.random.key(number), number * self.steps_per_epoch
        self.state, results = self.compiled(self.state, key, first, num_blocks, num_validated, self.arrays)
        loss, accuracy = jax.block_until_ready(results)
        return loss, accuracy

    def _epoch(self, state: Any, key: Array, first: Array, num_blocks: Array, num_validated: Array, arrays: Any) -> Any:
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, self.num_images)
        carry = (state, first.astype(jnp.float32), jnp.zeros_like(self.low))

        def block(number: Array, carry: Any) -> Any:
            rows = lax.dynamic_slice(order, (number * self.block,), (self.block,))
            return self._block(carry, rows, jax.random.fold_in(key, number), arrays)

        carry = lax.fori_loop(0, num_blocks, block, carry)
        if self.rest:
            rows = order[self.num_blocks * self.block :]
            carry = self._block(carry, rows, jax.random.fold_in(key, self.num_blocks), arrays)
        (weights, momentum), _, loss = carry
        num_trained = num_blocks * self.block + self.rest
        return (weights, momentum), (loss / num_trained, self._validate(weights, num_validated, arrays))

    def _block(self, carry: Any, rows: Array, key: Array, arrays: Any) -> Any:
        """Train on the images of these rows; the last batch may be short."""
        images, labels = augment(arrays["train_images"][rows], key), arrays["train_labels"][rows]
        whole = len(rows) // self.batch_size * self.batch_size
        if whole:
            batches = (
                images[:whole].reshape(-1, self.batch_size, *images.shape[1:]),
                labels[:whole].reshape(-1, self.batch_size),
            )
            carry, _ = lax.scan(lambda carry, batch: (self._step(carry, *batch), None), carry, batches)
        return self._step(carry, images[whole:], labels[whole:]) if whole < len(rows) else carry

    def _step(self, carry: Any, images: Array, labels: Array) -> Any:
        (weights, momentum), step, total = carry

        def loss_of(weights: Any) -> Array:
            chosen = jax.nn.log_softmax(self.network(weights, images))
            return -jnp.take_along_axis(chosen, labels[:, None], axis=1).mean()

        loss, gradients = jax.vmap(jax.value_and_grad(loss_of))(weights)
        squares = [(leaf**2).sum(range(1, leaf.ndim)) for leaf in jax.tree.leaves(gradients)]
        divisor = jnp.maximum(1.0, (jnp.sqrt(sum(squares)) + 1e-6) / CLIP_NORM)  # (K,)
        rate, keep = settings(step, self.low, self.steps_per_epoch)
        shrink, decay = lanes_of(weights, 1 / divisor), lanes_of(weights, self.decay)
        clipped = jax.tree.map(lambda g, s, d, w: g * s + d * w, gradients, shrink, decay, weights)
        momentum = jax.tree.map(lambda m, g: keep * m + g, momentum, clipped)
        weights = jax.tree.map(lambda w, r, m: w - r * m, weights, lanes_of(weights, rate), momentum)
        return (weights, momentum), step + 1, total + loss * len(labels)

    def _validate(self, weights: Any, num_batches: Array, arrays: Any) -> Array:
        """Accuracy (K,) on so many batches."""
        size = self.validation_batch

        def batch(number: Array, hits: Array) -> Array:
            images = lax.dynamic_slice_in_dim(arrays["validation_images"], number * size, size)
            labels = lax.dynamic_slice_in_dim(arrays["validation_labels"], number * size, size)
            logits = jax.vmap(self.network, (0, None))(weights, normalise(images.astype(jnp.float32)))
            return hits + (logits.argmax(-1) == labels).sum(-1)

        return lax.fori_loop(0, num_batches, batch, jnp.zeros(len(self.low))) / (num_batches * size)


def timed(population: Population, seconds: float) -> dict[str, Any]:
    """The best of the epochs, or of the parts of one, that fit into so many seconds; compilation is not counted."""

    def clock(share: float) -> tuple[float, int]:
        num_blocks = round(share * population.num_blocks)
        num_validated = max(1, round(share * population.num_validated))
        started = time.perf_counter()
        population.epoch(0, num_blocks, num_validated)
        return time.perf_counter() - started, num_blocks * population.block + population.rest

    probe = min(1.0, 2 / max(1, population.num_blocks))
    clock(probe)
    took, num_images = clock(probe)
    whole = took * population.num_images / num_images
    share = max(probe, min(1.0, seconds / whole))
    runs = [clock(share)]
    while sum(took for took, _ in runs) + runs[-1][0] < seconds:
        runs.append(clock(share))
    took, num_images = min(runs)
    statistics = jax.local_devices()[0].memory_stats() or {}
    memory = statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"seconds": took, "images": num_images, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description="K trials in JAX")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="lenet", choices=sorted(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lanes", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="train so many, and print loss and accuracy of each lane")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tf32", action="store_true", help="products in TF32, as JAX has them by default on a GPU")
    arguments = parser.parse_args()
    if (jax.default_backend() == "gpu") != (arguments.device == "cuda"):
        sys.exit(f"jax {jax.__version__} runs on {jax.default_backend()} here, not on {arguments.device}")
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if arguments.tf32 else "float32")
    names = [f"{part}_{kind}" for part in ("train", "validation") for kind in ("images", "labels")]
    arrays = {name: jnp.asarray(np.load(arguments.folder / f"{name}.npy")) for name in names}
    for num_lanes in sorted(arguments.lanes):  # the peak of memory is that of the process
        try:
            population = Population(arguments.model, arguments.batch_size, num_lanes, arrays)
            if not arguments.epochs:
                found = timed(population, arguments.seconds)
                print(json.dumps({"lanes": num_lanes, "jax": jax.__version__, **found}), flush=True)
            for number in range(arguments.epochs):
                loss, accuracy = population.epoch(number, population.num_blocks, population.num_validated)
                print(number + 1, np.round(np.asarray(loss), 4), np.round(np.asarray(accuracy), 4), flush=True)
        except jax.errors.JaxRuntimeError as error:
            print(json.dumps({"lanes": num_lanes, "error": str(error).splitlines()[0][:200]}), flush=True)


if __name__ == "__main__":
    main()
