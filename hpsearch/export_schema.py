"""What an export consists of, and what its metrics.json may say: `hpsearch verify` checks by it.

`docs/export.schema.json` is made from it. Nothing here needs torch, so that the dashboard can read exports.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hpsearch.sections import FEWEST_PIXELS, MOST_PIXELS

CONFIG, MODEL, METRICS, CARD, SUMS = "config.toml", "model.safetensors", "metrics.json", "README.md", "SHA256SUMS"
FILES = (CONFIG, MODEL, METRICS, CARD)  # SUMS has the sums of these

SCHEMA_VERSION = 1  # higher numbers are refused: an older hpsearch cannot know what they mean


class Strict(BaseModel):
    """No keys besides those that are listed; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Estimate(Strict):
    """A mean over seeds."""

    num: int = Field(ge=1, description="seeds")
    mean: float
    std: float | None = Field(description="standard deviation of single values; null with one seed")
    low: float | None = Field(description="lower end of the 95 % interval (Student's t)")
    high: float | None = Field(description="upper end of it")


class Preprocessing(Strict):
    """From an image to the network's input: resize (bicubic, antialiased), scale to 0..1, subtract, divide."""

    channels: Literal[1, 3]
    image_size: int = Field(ge=FEWEST_PIXELS, le=MOST_PIXELS, description="height and width in pixels")
    mean: list[float] = Field(description="of each channel, subtracted")
    std: list[float] = Field(description="of each channel, divided by")


class Model(Strict):
    """The architecture, as `config.toml` builds it."""

    name: str
    hyperparameters: dict[str, int | float] = Field(description="what its constructor gets besides shape and classes")
    num_parameters: int = Field(ge=1)
    classes: list[str] = Field(min_length=2, description="what the outputs stand for, in order")


class Data(Strict):
    """Which images, and which of them validate."""

    name: str
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 over classes, images, labels and split")
    num_train: int = Field(ge=1)
    num_validation: int = Field(ge=1)


class Weights(Strict):
    """The trial whose weights these are: of several seeds the one of median value."""

    study: str
    trial: int = Field(ge=0)
    seed: int
    epochs: int = Field(ge=1)
    validation_accuracy: float = Field(ge=0, le=1, description="what these weights give; `hpsearch verify` checks it")
    validation_loss: float


class Importance(Strict):
    """How much a hyperparameter mattered, with its bootstrap interval over trials."""

    share: float
    low: float
    high: float


class Search(Strict):
    """The search that found the configuration."""

    study: str
    trials: int
    complete: int
    pruned: int
    failed: int
    pruned_share: float = Field(ge=0, le=1)
    best_value: float | None
    importance_evaluator: str
    importances: dict[str, Importance]


class Confirmation(Strict):
    """The configuration over new seeds, against other candidates."""

    study: str
    candidate: str
    seeds: list[int]
    planned: int | None = Field(default=None, ge=1, description="how many seeds there were to be")
    lost: int = Field(default=0, ge=0, description="how many of them diverged or failed")
    value: Estimate
    search_value: float | None = Field(description="what the search reported for it")
    luck: Estimate | None = Field(description="the search's value less the mean over new seeds")
    not_told_apart: list[str] = Field(description="candidates that cannot be told from the best")


class Test(Strict):
    """The final test of the study, if it was made."""

    time: str
    openings: int = Field(ge=1)
    label: str = Field(description="the configuration that was tested")
    accuracy: Estimate
    macro_f1: Estimate
    calibration_error: Estimate


class Metrics(Strict):
    """metrics.json of an hpsearch export."""

    schema_version: Literal[1] = Field(description="of this file")
    hpsearch_version: str
    created: str = Field(description="UTC, ISO 8601")
    label: str
    rank: int = Field(ge=1)
    metric: Literal["validation_accuracy", "validation_loss"]
    configuration: dict[str, Any] = Field(description="every hyperparameter of the trial")
    model: Model
    preprocessing: Preprocessing
    data: Data
    weights: Weights
    search: Search | None
    confirmation: Confirmation | None
    test: Test | None


def schema() -> dict[str, Any]:
    """The JSON schema of metrics.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Metrics.model_json_schema()}
