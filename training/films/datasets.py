"""Rows of the film catalogue and their films, read through the serving recipe.

Only a film whose licence lets us pass on what was learnt from it is trained on, and no patient and no
picture stands on both sides of a split. Both are checked here, on every run.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dicom_node.errors import ConfigurationError
from training.files import write_whole
from worker import preprocess

CATALOGUE = "manifest.csv"
SPLITS = ("train", "dev", "test")
TRAINABLE_LICENCES = frozenset({"permissive", "repo-claimed CC BY 4.0"})
_TARGETS = {"covid": True, "noncovid": False}
_NEEDED = ("file", "patient_group", "sha256")
Record = dict[str, str]


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
    patient_known: bool = True
    """False: the group is this film alone, and another film may be of the same patient."""
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
    findings: frozenset[str] = frozenset()
    """As published; of a ChestX-ray14 film all that its labels name."""
    sha256: str

    @property
    def trainable(self) -> bool:
        """Whether the model may learn from this film."""
        return self.split == "train" and self.licence_class in TRAINABLE_LICENCES


def read_rows(folder: Path, *, guarded: bool = True) -> tuple[Row, ...]:
    """Read the catalogue and check that it can be learnt from.

    Args:
        folder: with the catalogue and its films.
        guarded: False only to look for leaks, or to show what a split that leaks is worth.

    Raises:
        ConfigurationError: the catalogue is missing or no table, a row is unusable (file and line are
            named), a film is listed twice, a patient or a picture stands in two splits, or a split lacks a
            class.
    """
    path = folder / CATALOGUE
    rows = tuple(row_of(record, path, line) for line, record in read_records(folder))
    if guarded:
        _require_once(rows, path)
        require_disjoint(rows)
        _require_classes(rows, path)
    return rows


def read_records(folder: Path) -> tuple[tuple[int, Record], ...]:
    """Every row of the catalogue as it is written, behind its line.

    Raises:
        ConfigurationError: the catalogue is missing, empty or no table; the line is named.
    """
    path = folder / CATALOGUE
    records: list[tuple[int, Record]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for cells in filter(None, reader):
                records.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except OSError:
        raise ConfigurationError(f"The film catalogue {path} cannot be read.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"The film catalogue {path} is not UTF-8 text.") from None
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line {reader.line_num}: {error}.") from None
    except ValueError:
        raise ConfigurationError(
            f"{path}, line {reader.line_num}: the row has more or fewer cells than the header."
        ) from None
    if not records:
        raise ConfigurationError(f"The film catalogue {path} has no rows.")
    return tuple(records)


def row_of(record: Record, path: Path, line: int) -> Row:
    """A row of the catalogue `path` by its types.

    Raises:
        ConfigurationError: names file, line and column.
    """
    try:
        for column in _NEEDED:
            if not record[column]:
                raise ConfigurationError(f"{path}, line {line}: `{column}` is empty.")
        if record["split"] not in SPLITS:
            raise ConfigurationError(f"{path}, line {line}: `{record['split']}` is not a split.")
        return Row(
            line=line,
            file=record["file"],
            positive=_TARGETS[record["target"]],
            split=record["split"],
            patient_group=record["patient_group"],
            patient_known=record.get("patient_known") != "0",
            origin=record["origin"],
            licence=record["licence"],
            licence_class=record["licence_class"],
            source_balanced=record["srcbal"] == "1",
            seedlike=record["seedlike"] == "1",
            label=record["label"],
            view=record["view"],
            findings=frozenset(filter(None, record.get("finding", "").split("|"))),
            sha256=record["sha256"],
        )
    except KeyError as error:
        raise ConfigurationError(f"{path}, line {line}: {error} is no known column or target.") from None


def require_disjoint(rows: Iterable[Row]) -> None:
    """Refuse a patient or a picture in two splits.

    Raises:
        ConfigurationError: names both films and their lines.
    """
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        for what, key in (("patient", row.patient_group), ("picture", row.sha256)):
            first = seen.setdefault((what, key), row)
            if first.split != row.split:
                raise ConfigurationError(
                    f"A {what} leaks from {first.split} (line {first.line}, {first.file}) "
                    f"into {row.split} (line {row.line}, {row.file})."
                )


def _require_once(rows: Iterable[Row], path: Path) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        if (first := seen.setdefault(row.file, row)) is not row:
            raise ConfigurationError(f"{path}, line {row.line}: {row.file} is in line {first.line} already.")


def _require_classes(rows: Iterable[Row], path: Path) -> None:
    there = {(row.split, row.positive) for row in rows}
    for split in SPLITS:
        for target, positive in _TARGETS.items():
            if (split, positive) not in there:
                raise ConfigurationError(f"The film catalogue {path} has no `{target}` film in `{split}`.")


def trainable(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows that may be trained on.

    Raises:
        ConfigurationError: a class is missing, so that nothing can be learnt.
    """
    kept = tuple(row for row in rows if row.trainable)
    for target, positive in _TARGETS.items():
        if not any(row.positive == positive for row in kept):
            raise ConfigurationError(f"No film of `train` that may be learnt from is `{target}`.")
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
        ConfigurationError: the film is missing, another than catalogued, cut, coloured or of more than 8
            bits; the sentence names the file and the line.
    """
    path = folder / row.file
    film = f"The film {path} (line {row.line})"
    try:
        content = path.read_bytes()
    except OSError:
        raise ConfigurationError(f"{film} cannot be read.") from None
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise ConfigurationError(f"{film} is not the one that the catalogue names.")
    try:
        # Pillow and not OpenCV, which fills up a cut JPEG with grey and says nothing.
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if picture.mode.startswith(("I", "F")):
            raise ConfigurationError(f"{film} has more than 8 bits a pixel: window it first.")
        film_HWC = np.asarray(picture.convert("L" if picture.mode in {"L", "1"} else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ConfigurationError(f"{film} is not a whole picture.") from None
    if film_HWC.ndim == 2:
        return film_HWC
    if (film_HWC != film_HWC[..., :1]).any():
        raise ConfigurationError(f"{film} is in colour: its channels differ, and a film is grey.")
    return np.ascontiguousarray(film_HWC[..., 0])


def load_inputs(folder: Path, rows: Sequence[Row], cache: Path) -> NDArray[np.uint8]:
    """The recipe's output for each row, `(N, SIZE, SIZE)` uint8, kept in `cache` under their digest."""
    return _kept(folder, rows, cache, preprocess.RECIPE, preprocess.to_input)


def load_plain(folder: Path, rows: Sequence[Row], size: int, cache: Path) -> NDArray[np.uint8]:
    """Films as the report took them, `(N, size, size)` uint8: resized without keeping the aspect."""

    return _kept(folder, rows, cache, f"plain-{size}/1", lambda film_HW: plain(film_HW, size))


def plain(film_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """One film as the report took it, `(size, size)`."""
    shrinks = min(film_HW.shape) >= size
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(film_HW, (size, size), interpolation=way), np.uint8)


def _kept(
    folder: Path,
    rows: Sequence[Row],
    cache: Path,
    recipe: str,
    convert: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    contents = "".join(f"{row.sha256}\n" for row in rows)
    key = hashlib.sha256(f"{recipe}\n{contents}".encode()).hexdigest()[:16]
    path = cache / f"inputs-{key}.npy"
    if path.exists():
        try:
            kept: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            path.unlink()  # damaged, and what is in it can be made again
        else:
            return kept
    inputs_NHW = np.stack([convert(read_film(folder, row)) for row in rows])
    cache.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, inputs_NHW)
    write_whole(path, content.getbuffer())
    return inputs_NHW
