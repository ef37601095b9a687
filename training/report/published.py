"""The report's own figures, read from `published.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

PUBLISHED = Path(__file__).parent / "published.toml"
BySplit = dict[str, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Column(_Part):
    """A model's figures in Table 2, percent."""

    model: str
    """As the report calls it."""
    accuracy: BySplit
    precision: BySplit
    recall: BySplit
    f1: BySplit
    auroc: BySplit


class Doubt(_Part):
    """A figure that cannot be as it is printed."""

    system: str
    metric: str
    split: str
    why: str


class Times(_Part):
    """Minutes of training."""

    retrained: float
    trainable_22: float
    model_10_faster_by: float


class Other(_Part):
    """What is said in the text."""

    resnet_18_dev_accuracy: float
    """Percent."""
    baseline_cnn_parameters: int


class Published(_Part):
    """What the report prints."""

    films: dict[str, tuple[int, int]]
    """COVID-19 and other films of each split."""
    table2: dict[str, Column]
    """By system."""
    doubts: tuple[Doubt, ...]
    times: Times
    other: Other

    @classmethod
    def read(cls) -> Self:
        """Read the file, which is part of the package."""
        return cls.model_validate(tomllib.loads(PUBLISHED.read_text(encoding="utf-8")))


@cache
def published() -> Published:
    """The report's own figures."""
    return Published.read()
