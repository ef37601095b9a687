"""Reading attributes of headers that nobody has checked: a value that cannot be understood is absent."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydicom.dataset import Dataset


def value_of(header: Dataset, keyword: str) -> object:
    """The value of an attribute; None when it is absent, empty or malformed."""
    try:
        return header.get(keyword)
    except Exception:  # noqa: BLE001 (pydicom converts when it is asked, and raises whatever the value provokes)
        return None


def text(header: Dataset, keyword: str) -> str:
    """Upper case, without padding; several values are joined by a backslash."""
    found = value_of(header, keyword)
    if found is None or isinstance(found, bytes):
        return ""
    values = found if isinstance(found, Iterable) and not isinstance(found, str) else [found]
    return "\\".join(str(value).strip(" \0") for value in values).upper()


def numbers(header: Dataset, keyword: str) -> list[float]:
    """Every value as a number, in order; NaN where one is none."""
    return [_number(value) for value in text(header, keyword).split("\\")] if text(header, keyword) else []


def integer(header: Dataset, keyword: str) -> int | None:
    """The first value, when it is a whole number."""
    found = numbers(header, keyword)
    return int(found[0]) if found and found[0].is_integer() else None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence."""
    found = value_of(header, keyword)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes):
        return []
    return [item for item in found if isinstance(item, Dataset)]


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
