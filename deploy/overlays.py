"""The overlay of a secondary capture as a PNG: what the radiologist is sent is what people look at here."""

from __future__ import annotations

import io
from pathlib import Path

from pydicom import dcmread

from worker.explain import write_png


def save_overlay(secondary_capture: bytes, path: Path) -> None:
    """Write the page that a secondary capture shows.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    write_png(dcmread(io.BytesIO(secondary_capture)).pixel_array, path)
