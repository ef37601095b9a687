"""A whole file, as a decoder child reads it: a reading or a rejection, and no sentence with a value in it."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from worker.decode import read_film
from worker.findings import Reading, Rejected
from worker.settings import EligibilitySection

_SETTINGS = EligibilitySection(minimum_pixels=32)
MARK = "SECRET"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def one_input(content: bytes) -> None:
    """Read the file; its identifiers bear a mark in the corpus."""
    path = Path(_folder().name) / "film.dcm"
    path.write_bytes(content)
    found = read_film(path, _SETTINGS, sop_instance_uid="1.2.3")
    assert isinstance(found, Reading | Rejected)
    if isinstance(found, Rejected):
        assert MARK not in found.sentence
