"""Draw train, dev and test anew, and look for what stands in more than one of them.

The draw depends on the seed and on the films, not on the order of the catalogue: films are ranked by a
digest of both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dicom_node.errors import ConfigurationError
from training.files import write_whole
from training.films.datasets import CATALOGUE, SPLITS, Record, Row, read_film, read_records, row_of

SHARE = 0.1
"""Of all films, in each of dev and test; one half of them COVID."""
_LEAST = 0.9  # of that share, where the films of whole patients do not add up to it
_SIDE = 16
NEAR = 40
"""Bits of 256. On real films, a copy as JPEG, at another size, gamma or aspect, turned by 1 degree or cut by
1 % is at most 40 bits away; films of different patients are 52 and more."""

ONE_PATIENT, NEAR_DUPLICATES = "films of one patient", "near-duplicates"


class By(StrEnum):
    """What is drawn as one."""

    PATIENT = "patient"
    IMAGE = "image"
    """As the report did: one patient's films, and copies of one film, come to stand in several splits."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Two films in different splits that should not be."""

    first: Row
    second: Row
    why: str

    def __str__(self) -> str:
        films = (f"{row.file} (line {row.line}, {row.split})" for row in (self.first, self.second))
        return f"{' and '.join(films)}: {self.why}"


def read_catalogue(
    folder: Path, *, splitted: bool, seedlike: bool
) -> tuple[tuple[Row, ...], tuple[Record, ...]]:
    """The films of a catalogue, as rows and as they are written there.

    Args:
        folder: with the catalogue.
        splitted: False where the films are yet to be drawn, so that their splits do not matter.
        seedlike: only the subset with the report's numbers.

    Raises:
        ConfigurationError: the catalogue or a row is unusable; file and line are named.
    """
    rows, records = [], []
    for line, record in read_records(folder):
        row = row_of(record if splitted else record | {"split": "train"}, folder / CATALOGUE, line)
        if row.seedlike or not seedlike:
            rows.append(row)
            records.append(record)
    if not rows:
        raise ConfigurationError(
            f"The film catalogue {folder / CATALOGUE} has no row of the report's subset."
        )
    return tuple(rows), tuple(records)


def alike(folder: Path, rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    """Pairs of near-duplicate films, by their places in `rows`.

    Films are compared by which of their 16 x 16 lowest frequencies are above the median (`imagehash.phash`),
    as they are and as negatives. Of copies that were cut or framed by 2 %, or drawn on, only some are found;
    of mirrored ones, or ones cut or framed by 4 %, none.

    Raises:
        ConfigurationError: a film cannot be read; file and line are named.
    """
    hashes = (imagehash.phash(Image.fromarray(read_film(folder, row)), _SIDE) for row in rows)
    bits_NW = np.packbits([film.hash.ravel() for film in hashes], axis=1).view(np.uint64)
    pairs = []
    for i, bits_W in enumerate(bits_NW):
        distances = np.bitwise_count(bits_W ^ bits_NW[i + 1 :]).sum(axis=1, dtype=np.int64)
        # In a negative every bit changes, but for that of the mean grey.
        near = np.minimum(distances, _SIDE**2 - distances) <= NEAR
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(near)]
    return tuple(pairs)


def leaks(rows: Sequence[Row], pairs: Iterable[tuple[int, int]]) -> tuple[Leak, ...]:
    """Every two films of different splits that share a patient, or are among the near-duplicate `pairs`."""
    found: dict[tuple[int, int], str] = dict.fromkeys(pairs, NEAR_DUPLICATES)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.patient_group, []).append(place)
    for films in places.values():
        found |= dict.fromkeys(itertools.combinations(films, 2), ONE_PATIENT)
    return tuple(
        Leak(first=rows[i], second=rows[j], why=why)
        for (i, j), why in sorted(found.items())
        if rows[i].split != rows[j].split
    )


def summary(rows: Sequence[Row], pairs: Iterable[tuple[int, int]]) -> dict[str, str | int]:
    """Films by split (COVID/others), and pairs that leak by their reason."""
    films = Counter((row.split, row.positive) for row in rows)
    reasons = Counter(leak.why for leak in leaks(rows, pairs))
    return {split: f"{films[split, True]}/{films[split, False]}" for split in SPLITS} | {
        "leaks_by_patient": reasons[ONE_PATIENT],
        "leaks_by_picture": reasons[NEAR_DUPLICATES],
    }


def draw(
    rows: Sequence[Row], pairs: Iterable[tuple[int, int]] = (), *, seed: int, by: By = By.PATIENT
) -> tuple[Row, ...]:
    """Give every film a split: dev and test a tenth each, half of it COVID, and the rest to train.

    By patient, all films of a patient and their near-duplicates go together, and films whose patient is not
    known go to train. Where whole patients do not add up to a tenth, dev or test is up to 10 % smaller.

    Args:
        rows: films, whatever their split is now.
        pairs: near-duplicates, see `alike`.
        seed: another seed draws other films.
        by: `image` ignores patients and pairs.

    Returns:
        The rows, in their order.

    Raises:
        ConfigurationError: there are too few films of a class.
    """
    units = _units(rows, pairs if by is By.PATIENT else None)
    units.sort(key=lambda unit: _rank(seed, min(f"{rows[i].sha256} {rows[i].file}" for i in unit)))
    split_of = dict.fromkeys(range(len(rows)), "train")
    free = [unit for unit in units if by is By.IMAGE or all(rows[i].patient_known for i in unit)]
    half = round(len(rows) * SHARE / 2)
    for split in ("dev", "test"):
        sizes = range(half, max(int(half * _LEAST), 1) - 1, -1)
        chosen = next(filter(None, (_fill(rows, free, size) for size in sizes)), None)
        if chosen is None:
            raise ConfigurationError(f"The films do not suffice for {half} of each class in `{split}`.")
        free = [unit for unit in free if unit not in chosen]
        split_of |= {i: split for unit in chosen for i in unit}
    if len({rows[i].positive for i, split in split_of.items() if split == "train"}) < 2:
        raise ConfigurationError("The films of one class all went to dev and test: none is left for `train`.")
    return tuple(replace(row, split=split_of[i]) for i, row in enumerate(rows))


def write_catalogue(rows: Sequence[Row], records: Sequence[Record], source: Path, target: Path) -> None:
    """Write the catalogue of `rows` into another folder, all at once.

    Args:
        rows: with their new splits.
        records: the same films as they stand in the catalogue now; all their columns stay.
        source: folder of the catalogue now, with the films; the new `file` leads there.
        target: made if need be.

    Raises:
        ConfigurationError: they are one folder, where the old splits would be lost.
    """
    if target.resolve() == source.resolve():
        raise ConfigurationError(f"The splits of {source} would be lost: choose another folder.")
    target.mkdir(parents=True, exist_ok=True)
    there = Path(os.path.relpath(source, target))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(records[0] | {"split": ""}))
    writer.writeheader()
    writer.writerows(
        record | {"split": row.split, "file": (there / row.file).as_posix()}
        for row, record in zip(rows, records, strict=True)
    )
    write_whole(target / CATALOGUE, table.getvalue())


def _units(rows: Sequence[Row], pairs: Iterable[tuple[int, int]] | None) -> list[tuple[int, ...]]:
    """Places in `rows` that are drawn together: each its own, or joined by patient and by `pairs`."""
    if pairs is None:
        return [(i,) for i in range(len(rows))]
    first: dict[str, int] = {}
    joined = [(first.setdefault(row.patient_group, i), i) for i, row in enumerate(rows)]
    from_P, to_P = np.array([*joined, *pairs]).T
    graph = coo_array((np.ones(len(from_P)), (from_P, to_P)), shape=(len(rows), len(rows)))
    units: dict[int, list[int]] = {}
    for i, unit in enumerate(connected_components(graph, directed=False)[1]):
        units.setdefault(int(unit), []).append(i)
    return [tuple(unit) for unit in units.values()]


def _rank(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def _fill(rows: Sequence[Row], units: Iterable[tuple[int, ...]], size: int) -> set[tuple[int, ...]] | None:
    """The first units that add up to `size` films of each class; None if they do not."""
    chosen, room = set(), Counter({True: size, False: size})
    for unit in units:
        counts = Counter(rows[i].positive for i in unit)
        if counts <= room:
            room -= counts
            chosen.add(unit)
    return None if room.total() else chosen
