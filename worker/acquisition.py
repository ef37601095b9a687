"""Whose apparatus made a film, and in which view, as codes: few enough to compare groups of films by.

A header may hold any text, a name among it: only what is known by heart leaves here.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from worker.attributes import text
from worker.findings import Vendor, View

_VENDORS = (
    (re.compile(r"\bGE\b|GENERAL ELECTRIC|GEMS"), Vendor.GE),
    (re.compile(r"SIEMENS|VARIAN"), Vendor.SIEMENS),
    (re.compile(r"PHILIPS"), Vendor.PHILIPS),
    (re.compile(r"FUJI"), Vendor.FUJIFILM),
    (re.compile(r"AGFA"), Vendor.AGFA),
    (re.compile(r"CARESTREAM|KODAK"), Vendor.CARESTREAM),
    (re.compile(r"CANON|TOSHIBA"), Vendor.CANON),
    (re.compile(r"KONICA"), Vendor.KONICA),
    (re.compile(r"SAMSUNG"), Vendor.SAMSUNG),
    (re.compile(r"SHIMADZU"), Vendor.SHIMADZU),
)
_LATERAL = {"LL", "RL", "LAT", "LATERAL", "LLD", "RLD"}


def vendor_of(header: Dataset) -> Vendor:
    """From Manufacturer (0008,0070)."""
    said = text(header, "Manufacturer")
    if not said:
        return Vendor.UNKNOWN
    return next((vendor for pattern, vendor in _VENDORS if pattern.search(said)), Vendor.OTHER)


def view_of(header: Dataset) -> View:
    """From ViewPosition (0018,5101)."""
    said = text(header, "ViewPosition")
    if not said:
        return View.UNKNOWN
    if said in _LATERAL:
        return View.LATERAL
    return View(said.lower()) if said in ("PA", "AP") else View.OTHER
