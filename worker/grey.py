"""The grey pipeline (PS3.4 N.2): modality, VOI and presentation as one table from words to grey values.

Every step maps one value to one value, so all of them, with the unused bits and the padding, are one
table of at most 65,536 entries. A film of five million pixels is then looked up once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import Permanent, Reason
from worker.attributes import integer, items, numbers, text, value_of
from worker.findings import LONGEST_DISPLAY
from worker.pixels import PixelFormat

_FULL = 65535
_FEWEST_LEVELS = 8
"""Between the 0.5th and 99.5th percentile; a film with fewer shows nothing."""
_SMALLEST_SPREAD = 1 / 64
"""A window that maps the film to less than this share of the greys is not meant for it."""

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""VOILUTFunction's defined terms (PS3.3 C.11.2.1.3)."""

_SAMPLE = 100_000
"""Pixels, enough to know a film's range."""

Values = NDArray[np.float64]
Words = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Grey:
    """A film as it is meant to be seen."""

    grey_HW: NDArray[np.uint16]
    """0 is black, 65535 white, and bright means dense."""
    inverted: bool
    window: str
    flat: bool
    """Whether the film shows nothing."""


def to_grey(header: Dataset, words_HW: Words, form: PixelFormat) -> Grey:
    """Apply the header's transformations.

    Raises:
        Permanent: PIXELS_INCONSISTENT for a modality transformation that has no meaning.
    """
    stored = form.stored_values()
    values = _modality(header, stored)
    padding = _padding(header, stored)
    ends = _ends(values, padding, words_HW)
    shares, window = _voi(header, values, ends)
    # MONOCHROME1 and INVERSE mean the same; films that say both, or only one, are inverted once.
    inverted = form.photometric == "MONOCHROME1" or text(header, "PresentationLUTShape") == "INVERSE"
    shares = 1 - shares if inverted else shares
    shares[padding] = 0
    table = np.rint(shares * _FULL).astype(np.uint16)
    return Grey(
        grey_HW=np.asarray(cv2.LUT(words_HW, table), np.uint16),
        inverted=inverted,
        window=window,
        flat=bool(np.ptp(stored[ends]) < _FEWEST_LEVELS),
    )


def to_display(grey_HW: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Shrink to at most 1024 pixels on the long side, 8 bits."""
    rows, columns = grey_HW.shape
    small = grey_HW
    while max(small.shape) >= 2 * LONGEST_DISPLAY:
        # Means of two by two are ten times cheaper than a mean over fractions of pixels.
        half = small.shape[0] // 2, small.shape[1] // 2
        even = small[: 2 * half[0], : 2 * half[1]]
        small = np.asarray(cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA), np.uint16)
    scale = LONGEST_DISPLAY / max(rows, columns)
    if scale < 1:
        size = max(round(columns * scale), 1), max(round(rows * scale), 1)
        small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), np.uint16)
    return np.asarray(cv2.convertScaleAbs(small, alpha=255 / _FULL), np.uint8)


def _modality(header: Dataset, stored: NDArray[np.int32]) -> Values:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    for item in items(header, "ModalityLUTSequence")[:1]:
        looked_up = _look_up(item, stored.astype(np.float64))
        if looked_up is None:
            raise Permanent(Reason.PIXELS_INCONSISTENT, "The modality LUT cannot be read.")
        return looked_up[0]
    slope = (numbers(header, "RescaleSlope") or [1.0])[0]
    intercept = (numbers(header, "RescaleIntercept") or [0.0])[0]
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise Permanent(Reason.PIXELS_INCONSISTENT, "RescaleSlope or RescaleIntercept has no meaning.")
    return np.asarray(stored * slope + intercept, np.float64)


def _ends(values: Values, padding: NDArray[np.bool_], words_HW: Words) -> NDArray[np.intp]:
    """The words between which the film's values lie, but for the outermost two hundredths."""
    step = max(math.isqrt(words_HW.size // _SAMPLE), 1)
    sample = words_HW[::step, ::step].ravel()
    seen = values[sample[~padding[sample]]]
    if not seen.size:
        return np.zeros(2, np.intp)
    return np.array([np.abs(values - end).argmin() for end in np.percentile(seen, (0.5, 99.5))])


def _voi(header: Dataset, values: Values, ends: NDArray[np.intp]) -> tuple[Values, str]:
    """The first VOI transformation that shows the film, as shares of white; else the film's own range."""
    for shares, window in _candidates(header, values):
        if np.ptp(shares[ends]) >= _SMALLEST_SPREAD:
            return shares, window
    low, high = values[ends]
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1), "none"


def _candidates(header: Dataset, values: Values) -> list[tuple[Values, str]]:
    found: list[tuple[Values, str]] = []
    for item in items(header, "VOILUTSequence")[:1]:
        looked_up = _look_up(item, values)
        if looked_up is not None:
            entries, bits = looked_up
            found.append((np.clip(entries / ((1 << bits) - 1), 0, 1), "LUT"))
    function = text(header, "VOILUTFunction")
    if function not in _FUNCTIONS:
        # The audit keeps the label for ever: no free text of the header may get into it.
        function = "LINEAR"
    centres, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    for centre, width in zip(centres, widths, strict=False):
        shares = _window(values, centre, width, function)
        if shares is not None:
            found.append((shares, f"{function} {centre:g}/{width:g}"))
    return found


def _window(values: Values, centre: float, width: float, function: str) -> Values | None:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3; None for a window that has no meaning."""
    if not math.isfinite(centre) or not math.isfinite(width) or width <= 0:
        return None
    if function == "SIGMOID":
        sigmoid: Values = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
        return sigmoid
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    # A width of 1 is a threshold; below 1 LINEAR is not defined.
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1) if width >= 1 else None


def _look_up(item: Dataset, values: Values) -> tuple[Values, int] | None:
    """Entries of a LUT for each value, and their bits (PS3.3 C.11.1.1, C.11.2.1.1)."""
    descriptor = numbers(item, "LUTDescriptor")
    entries = (
        _entries(value_of(item, "LUTData"), int(descriptor[0]) or 1 << 16) if len(descriptor) == 3 else None
    )
    if entries is None or not 8 <= descriptor[2] <= 16:
        return None
    index = np.clip(np.rint(values) - descriptor[1], 0, len(entries) - 1).astype(np.intp)
    bits, peak = int(descriptor[2]), int(entries.max())
    if peak >= 1 << bits or (bits == 16 and peak < 1 << 12):
        # For CR only 8 and 16 are allowed there, and modalities say one of them whatever the entries have.
        bits = max(peak.bit_length(), 1)
    return entries[index], bits


def _entries(data: object, count: int) -> Values | None:
    if isinstance(data, bytes):
        # Entries of 8 bits may be packed two to a word.
        dtype = "u1" if len(data) < 2 * count else "<u2"
        entries = np.frombuffer(data, dtype).astype(np.float64)
    else:
        entries = np.atleast_1d(np.asarray(data, np.float64)) if data is not None else np.empty(0)
    return entries[:count] if 0 < count <= len(entries) else None


def _padding(header: Dataset, stored: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which words stand for no pixel (PS3.3 C.7.5.1.1.2)."""
    value = integer(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    limit = integer(header, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)
