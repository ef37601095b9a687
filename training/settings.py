"""Settings of a training run. They are written into the run directory and bound to its checkpoints."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom_node.errors import ConfigurationError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Stage(_Part):
    """Some epochs at one resolution. The network is fully convolutional, so small films teach it cheaply."""

    size: int = Field(ge=32)
    """Side of the films in pixels; the last stage is the size that is served."""
    epochs: int = Field(ge=1)


class TaskWeights(_Part):
    """Share of each task in the loss, see `tasks`."""

    covid: float = 1.0
    opacity: float = 0.0
    view: float = 0.0
    findings: float = 0.0
    """Of the fourteen together."""
    lungs: float = Field(default=0.0, ge=0)
    """Of the share of the class activation map that lies outside the lungs, see `outside`."""


class TrainingSettings(_Part):
    """One training run. What a file leaves out is as here; the shipped model's is `configs/default.toml`."""

    seed: int = 20201204
    stages: tuple[Stage, ...] = (
        Stage(size=96, epochs=11),
        Stage(size=128, epochs=3),
        Stage(size=192, epochs=2),
        Stage(size=224, epochs=2),
    )
    films_per_epoch: int = Field(default=512, ge=1)
    """Films drawn for an epoch, without replacement; small, so that a checkpoint is never far away."""
    batch: int = Field(default=16, ge=2)
    learning_rate: float = 1e-3
    """Peak of one cycle: linear warm-up over the first 5 % of the steps, then a cosine down to 1 %."""
    weight_decay: float = 0.02
    head_epochs: int = Field(default=0, ge=0)
    """Epochs at the beginning in which the heads alone learn, at ten times the peak rate (Kumar et al., ICLR
    2022): heads that begin at random would first distort features that others have learnt."""
    init: str = "random"
    """Weights to begin with, see `importers.load_init`."""
    weights: TaskWeights = TaskWeights()
    sampling: Literal["natural", "balanced"] = "natural"
    """`natural`: every film as often as another, COVID films weighted in the loss; `balanced`: drawn by
    `tasks.strata`, none weighted."""
    opacity_share: float | None = Field(default=None, gt=0, lt=1)
    """Of the films without COVID that `balanced` draws, those that show an opacity: what COVID has to be told
    from."""
    leave_out: tuple[str, ...] = ()
    """Origins not learnt from, to ask what the network makes of a source that it has never seen."""
    average: float = Field(default=0.98, ge=0, lt=1)
    """Decay per step of the exponential average of weights, which is what is evaluated and exported."""
    evaluate_every: int = Field(default=4, ge=1)
    """Epochs between two looks at `dev`."""
    threads: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.opacity_share is not None and self.sampling != "balanced":
            raise ValueError("opacity_share is of balanced sampling")
        return self

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def size_of(self, epoch: int) -> int:
        """Side of the films in an epoch, counted from 0 over all stages."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage.size
            epoch -= stage.epochs
        raise IndexError(epoch)

    def rate_at(self, epoch: float) -> float:
        """Learning rate after so many epochs."""
        if epoch < self.head_epochs:
            return 10 * self.learning_rate
        progress = (epoch - self.head_epochs) / (self.epochs - self.head_epochs)
        warm = 0.05
        if progress < warm:
            factor = progress / warm
        else:
            factor = 0.505 + 0.495 * math.cos(math.pi * (progress - warm) / (1 - warm))
        return self.learning_rate * max(factor, 0.01)

    def goes_on(self, before: Self, epochs: int) -> bool:
        """Whether a run with `epochs` behind it, begun with `before`, may go on with these settings.

        The stages ahead may be others, nothing else.
        """
        if epochs > min(self.epochs, before.epochs) or self != before.model_copy(
            update={"stages": self.stages}
        ):
            return False
        return all(self.size_of(epoch) == before.size_of(epoch) for epoch in range(epochs))


def read_settings(path: Path) -> TrainingSettings:
    """Read a TOML file.

    Raises:
        ConfigurationError: the file is missing or a value is unusable; the sentence names it.
    """
    try:
        return TrainingSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The training settings {path} cannot be read: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = f" at `{where}`" if where else f": {first['msg']}"
        raise ConfigurationError(f"The training settings {path} are not usable{why}.") from None
