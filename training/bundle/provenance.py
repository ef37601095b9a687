"""What a run and a bundle keep about their making."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from training.bundle.candidates import Candidate
from training.evaluation.evaluate import Evaluation
from training.explain.explanation import Explanation
from training.films import datasets
from training.films.datasets import Row
from training.settings import TrainingSettings


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunRecord(_Part):
    """`configuration.json` of a run directory."""

    settings: TrainingSettings
    data: str
    """Digest of the catalogue, see `datasets.digest`."""
    positive_weight: float
    """Negatives over positives among the films learnt from."""
    commit: str
    """Of the code that trained, `-dirty` when it was changed since; empty outside a repository."""
    torch: str
    init: str = "random"
    """Weights begun with, as the importer says of the file."""
    precision: str = "float32"
    """Of the activations."""
    planned_anew: tuple[int, ...] = ()
    """Epochs after which the stages ahead were changed; the settings hold the last plan."""
    mean_of: tuple[str, ...] = ()
    """SHA-256 of the checkpoints whose mean the network is, see `soup`; the settings are the first one's."""


class Source(_Part):
    """Films learnt from, of one origin under one licence."""

    origin: str
    licence: str
    covid: int
    noncovid: int


class Provenance(_Part):
    """The `training` part of a manifest."""

    command: str
    """That makes the bundle."""
    run: RunRecord
    sources: tuple[Source, ...]
    evaluation: Evaluation
    explanation: Explanation | None = None
    """None where the maps were not tested."""
    candidates: tuple[Candidate, ...] = ()
    """What was tried for this network."""


def sources_of(rows: Sequence[Row], leave_out: Sequence[str] = ()) -> tuple[Source, ...]:
    """The films learnt from, counted by origin and licence; without those of the origins left out."""
    learnt = [row for row in datasets.trainable(rows) if row.origin not in leave_out]
    counts = Counter((row.origin, row.licence, row.positive) for row in learnt)
    return tuple(
        Source(
            origin=origin,
            licence=licence,
            covid=counts[origin, licence, True],
            noncovid=counts[origin, licence, False],
        )
        for origin, licence in sorted({key[:2] for key in counts})
    )


def positive_weight(rows: Sequence[Row]) -> float:
    """Negatives over positives among the films learnt from."""
    positive = np.mean(datasets.targets(datasets.trainable(rows)))
    return float((1 - positive) / positive)


_CODE = (".", ":!results", "../worker", "../dicom_node")


def commit() -> str:
    """The commit that is checked out, with `-dirty` when the code that trains was changed since.

    What it writes into `results` is no change.
    """
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *_CODE) else "")


def in_turn(begun: str, now: str) -> str:
    """What began a run and what went on with it, each once: of a commit, a machine or a version of torch.

    Empty is code that is not under version control.
    """
    if begun == now:
        return begun
    first, last = begun or "unknown", now or "unknown"
    return first if last in first.split(", then ") else f"{first}, then {last}"
