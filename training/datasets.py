"""Rows of the film catalogue and their films, read through the serving recipe.

Only a film whose licence lets us pass on what was learnt from it is trained on, and no patient stands
on both sides of a split. Both are checked here, on every run.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from worker import preprocess

CATALOGUE = "manifest.csv"
SPLITS = ("train", "dev", "test")
TRAINABLE_LICENCES = frozenset({"permissive", "repo-claimed CC BY 4.0"})
_TARGETS = {"covid": True, "noncovid": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One film of the catalogue."""

    line: int
    """Line in the catalogue, for messages; the header is line 1."""
    file: str
    positive: bool
    """COVID-19 is the positive class."""
    split: str
    patient_group: str
    """Films of one patient share it."""
    origin: str
    licence: str
    licence_class: str
    source_balanced: bool
    """From a publisher that contributes both classes, so that its look gives nothing away."""
    seedlike: bool
    """Of the subset with the report's numbers: 170/871, 65/65 and 65/65 films."""
    label: str
    """Finer class: covid, pneumonia, normal or other."""
    view: str
    """ViewPosition as published, `AP` or `PA` at its beginning; empty where unknown."""
    sha256: str

    @property
    def trainable(self) -> bool:
        """Whether the model may learn from this film."""
        return self.split == "train" and self.licence_class in TRAINABLE_LICENCES


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Read the catalogue and check that its splits share no patient.

    Raises:
        ConfigurationError: the catalogue is missing, a row is unusable (file and line are named), or a
            patient stands in two splits.
    """
    path = folder / CATALOGUE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = tuple(_row(record, path, line) for line, record in enumerate(csv.DictReader(file), 2))
    except OSError:
        raise ConfigurationError(f"The film catalogue {path} cannot be read.") from None
    if not rows:
        raise ConfigurationError(f"The film catalogue {path} has no rows.")
    require_disjoint(rows)
    return rows


def _row(record: dict[str, str], path: Path, line: int) -> Row:
    try:
        if record["split"] not in SPLITS:
            raise ConfigurationError(f"{path}, line {line}: `{record['split']}` is not a split.")
        return Row(
            line=line,
            file=record["file"],
            positive=_TARGETS[record["target"]],
            split=record["split"],
            patient_group=record["patient_group"],
            origin=record["origin"],
            licence=record["licence"],
            licence_class=record["licence_class"],
            source_balanced=record["srcbal"] == "1",
            seedlike=record["seedlike"] == "1",
            label=record["label"],
            view=record["view"],
            sha256=record["sha256"],
        )
    except KeyError as error:
        raise ConfigurationError(f"{path}, line {line}: {error} is no known column or target.") from None


def require_disjoint(rows: Iterable[Row]) -> None:
    """Refuse a patient who stands in two splits.

    Raises:
        ConfigurationError: names both lines.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.patient_group, row)
        if first.split != row.split:
            raise ConfigurationError(
                f"A patient leaks from {first.split} (line {first.line}) into {row.split} (line {row.line})."
            )


def trainable(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows that may be trained on.

    Raises:
        ConfigurationError: a class is missing, so that nothing can be learnt.
    """
    kept = tuple(row for row in rows if row.trainable)
    if len({row.positive for row in kept}) < len(_TARGETS):
        raise ConfigurationError("The rows that may be trained on do not hold both classes.")
    return kept


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over what a run depends on: every film's content, class, split and licence class."""
    lines = sorted(f"{r.sha256} {r.positive:d} {r.split} {r.licence_class}\n" for r in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def targets(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Classes `(N,)`, true for COVID-19."""
    return np.array([row.positive for row in rows])


def read_film(folder: Path, row: Row) -> NDArray[np.uint8]:
    """Read one grey film, `(H, W)`.

    Raises:
        ConfigurationError: names the file and the line.
    """
    path = folder / row.file
    try:
        content = path.read_bytes()
    except OSError:
        raise ConfigurationError(f"The film {path} (line {row.line}) cannot be read.") from None
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise ConfigurationError(
            f"The film {path} (line {row.line}) is not the one that the catalogue names."
        )
    film_HW = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    if film_HW is None:
        raise ConfigurationError(f"The film {path} (line {row.line}) is not a picture.")
    film: NDArray[np.uint8] = film_HW.astype(np.uint8, copy=False)
    return film


def load_inputs(folder: Path, rows: Sequence[Row], cache: Path) -> NDArray[np.uint8]:
    """The recipe's output for each row, `(N, 320, 320)` uint8, kept in `cache` under its content's digest."""
    contents = "".join(f"{row.sha256}\n" for row in rows)
    key = hashlib.sha256(f"{preprocess.RECIPE}\n{contents}".encode()).hexdigest()[:16]
    path = cache / f"inputs-{key}.npy"
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return kept
    inputs_NHW = np.stack([preprocess.to_input(read_film(folder, row)) for row in rows])
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.save(file, inputs_NHW)
    temporary.replace(path)
    return inputs_NHW
