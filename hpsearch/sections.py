"""The sections of a study file that hold settings: keys, types, limits and defaults, as frozen pydantic models.

[training], [space] and [[first]] hold hyperparameters instead; their rules are `recipe.RULES`.
"""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Metric: TypeAlias = Literal["validation_accuracy", "validation_loss"]
MOST_TRIALS = 10**9  # databases count them in 32 bits
FEWEST_PIXELS = 8  # of a side: smaller ones leave nothing to a convolution
MOST_PIXELS = 4096  # of a side; a thousand images of that size are 50 GB


class Section(BaseModel):
    """A section of a study file: unknown keys are mistakes, and 1 is not "1"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Section):
    """[model]: the architecture."""

    name: str = Field(description="an architecture: built in, or added by an installed package")
    export: str | None = Field(
        None, description='the folder of an export; trials with start = "export" begin with its weights'
    )


class Data(Section):
    """[data]: the images."""

    name: str = Field(
        description="a data set, built in or added by an installed package; after a colon, what it needs: `folder:PATH`"
    )
    image_size: int = Field(
        32, ge=FEWEST_PIXELS, le=MOST_PIXELS, description="height and width in pixels to which images are resized"
    )


class Sampler(Section):
    """[sampler]: what to try next."""

    name: str = Field("tpe", description="the sampler")
    startup_trials: int | None = Field(None, ge=1, description="random trials before the sampler starts to learn")
    seed: int | None = Field(None, ge=0, description="the sampler's own seed; if absent, follows from the study seed")

    def options(self) -> dict[str, Any]:
        """The options that the study sets, by name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Pruner(Section):
    """[pruner]: which trials to stop early."""

    name: str = Field(
        "asha",
        description="the pruner; default `none` under the samplers `gp` and `cmaes`, which learn from completed trials "
        "only, and if nothing is searched; `race` is for candidates",
    )
    min_epochs: int | None = Field(None, ge=1, description="epochs that every trial may train")
    factor: int | None = Field(None, ge=2, description="one in so many trials passes a rung; rungs grow by it")
    startup_trials: int | None = Field(None, ge=0, description="trials that must have completed before any is stopped")

    def options(self) -> dict[str, Any]:
        """The options that the study sets, by name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Budget(Section):
    """[budget]: when no more trials are started. What is used up first counts; running trials train to their end."""

    trials: int = Field(ge=1, le=MOST_TRIALS, description="trials to run, pruned and failed ones included; exact")
    epochs: int | None = Field(
        None, ge=1, description="epochs of all trials together; a trial starts only if all of its epochs still fit"
    )
    gpu_hours: float | None = Field(
        None,
        gt=0,
        description="hours of training on all devices together, CPUs included; noticed when a trial would start",
    )
    wall_clock_hours: float | None = Field(None, gt=0, description="hours since the first trial started")
    target: float | None = Field(None, description="value of the objective that is good enough")


class Objective(Section):
    """[objective]: what makes a trial better than another."""

    metric: Metric = Field(
        "validation_accuracy", description="validation_accuracy (the higher the better) or validation_loss (the lower)"
    )

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return "minimize" if self.metric == "validation_loss" else "maximize"

    @property
    def maximize(self) -> bool:
        return self.direction == "maximize"


SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "sampler": Sampler,
    "pruner": Pruner,
    "budget": Budget,
    "objective": Objective,
}

# The options that each sampler and pruner takes; tests compare them with the functions' arguments.
SAMPLER_OPTIONS = {
    "tpe": ("startup_trials", "seed"),
    "random": ("seed",),
    "gp": ("startup_trials", "seed"),
    "cmaes": ("startup_trials", "seed"),
    "grid": (),  # draws nothing
    "qmc": ("seed",),
}
FROM_COMPLETE = ("gp", "cmaes")  # samplers that learn nothing from trials that were pruned
PRUNER_OPTIONS = {
    "asha": ("min_epochs", "factor"),
    "hyperband": ("min_epochs", "factor"),
    "median": ("startup_trials", "min_epochs"),
    "race": (),
    "none": (),
}
