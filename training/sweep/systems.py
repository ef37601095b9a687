"""The systems of the report, read from `systems.toml`: sixteen networks with all that was said of them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom_node.errors import ConfigurationError

SYSTEMS = Path(__file__).parent / "systems.toml"
FEATURE_TENSORS = 362
"""Parameter tensors of DenseNet-121 without its head, as the report counts its "layers"."""


class System(BaseModel):
    """One network and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """As the run directory is called."""
    title: str
    """As the report calls it."""
    network: Literal["baseline-cnn", "resnet-18", "densenet-121"]
    size: int = Field(ge=32)
    """Side of the films in pixels; the aspect is not kept."""
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    optimiser: Literal["adam", "sgd"]
    learning_rate: float = Field(gt=0)
    decay_every: int = Field(default=0, ge=0)
    """Epochs after which the learning rate falls to a tenth, again and again; 0: it never falls."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Weight of a COVID film's loss."""
    regularised: bool = False
    """Baseline CNN only: batch normalisation at the input and dropout after each pooling."""
    upsample: bool = False
    """Show COVID films as often as the others, by repetition."""
    trainable: int = Field(default=0, ge=0, le=FEATURE_TENSORS)
    """DenseNet-121 only: parameter tensors that learn, counted from the output side; the head always does."""
    frozen_statistics: Literal["fixed", "updating"] = "fixed"
    """Whether frozen normalisations keep their running statistics, so that a film's frozen features are
    always the same and need computing once; the report's kept `updating`."""
    selection_logit: float = 0.0
    """A film is called COVID above it when the best epoch is chosen; the report used 0.5 here and 0 in
    its final figures."""
    seed: int = 20201204

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.network != "densenet-121" and self.trainable:
            raise ValueError("only DenseNet-121 is frozen in part")
        if self.network != "baseline-cnn" and self.regularised:
            raise ValueError("only the baseline CNN has dropout")
        return self

    def rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.learning_rate * 0.1 ** (epoch // self.decay_every if self.decay_every else 0)


def read_systems(path: Path = SYSTEMS) -> tuple[System, ...]:
    """Read a table of systems, in its order.

    Raises:
        ConfigurationError: the file is missing or a value is unusable; the sentence names both.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The systems {path} cannot be read: {error}.") from None
    systems = []
    for name, table in tables.items():
        try:
            systems.append(System.model_validate({"name": name, **table}))
        except (ValidationError, TypeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            where = ".".join(map(str, (name, *(first["loc"] if first else ()))))
            raise ConfigurationError(f"The systems {path} are not usable at `{where}`.") from None
    return tuple(systems)


def select(systems: Sequence[System], names: Sequence[str]) -> tuple[System, ...]:
    """The systems of these names in their own order; all of them without a name.

    Raises:
        ConfigurationError: a name is none of theirs.
    """
    known = [system.name for system in systems]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"`{name}` is no system; there are {', '.join(known)}.")
    return tuple(system for system in systems if not names or system.name in names)


@cache
def report_systems() -> tuple[System, ...]:
    """The systems that the report compares."""
    return read_systems()
