"""From a data set to stored values: the header is checked against the bytes before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, RLELossless

from dicom_node.errors import Permanent, Reason
from worker.attributes import integer, text
from worker.codecs import decode_frame
from worker.codestream import JPEG_2000_FAMILY, CodeStream, has_every_tile, read_header

LARGEST_FILM = 64_000_000
"""Pixels. Twice the largest detector; more is an attack or a defect."""

_WORKING_BYTES = 10
"""For each pixel, of the hungriest codec (JPEG 2000 works in 32 bits, twice) and of the result."""
_END = b"\xff\xd9"  # of an image (JPEG, JPEG-LS) and of a code stream (JPEG 2000): the same marker
_LONGEST_TAIL = 64
"""Bytes after the end marker that are taken for padding."""


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """The Image Pixel module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    compressed: bool
    """By a codec that knows samples: what it returns are values, not words with unused bits."""

    @property
    def bytes(self) -> int:
        """Of one uncompressed frame, padding not counted."""
        return self.rows * self.columns * self.bits_allocated // 8

    def stored_values(self) -> NDArray[np.int32]:
        """The stored value that each possible word stands for, `(2 ** bits_allocated,)`.

        Bits outside BitsStored (overlays, junk above the high bit) fall away here (PS3.5 8.1.1).
        """
        words = np.arange(1 << self.bits_allocated).astype(f"u{self.bits_allocated // 8}")
        typed = words.view(words.dtype.str.replace("u", "i")) if self.signed else words
        if not self.compressed:
            typed = typed << (self.bits_allocated - 1 - self.high_bit)
            typed = typed >> (self.bits_allocated - self.bits_stored)
        return typed.astype(np.int32)


def pixel_format(header: Dataset) -> PixelFormat:
    """Read and check the Image Pixel module.

    Raises:
        Permanent: PIXELS_INCONSISTENT; the sentence names the attribute.
    """
    syntax = UID(header.file_meta.TransferSyntaxUID)
    required = ("Rows", "Columns", "BitsAllocated", "BitsStored")
    rows, columns, allocated, stored = (_required(header, keyword) for keyword in required)
    high = integer(header, "HighBit")
    found = PixelFormat(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high is None else high,
        signed=integer(header, "PixelRepresentation") == 1,
        photometric=text(header, "PhotometricInterpretation"),
        compressed=syntax.is_compressed and syntax != RLELossless,
    )
    if allocated not in (8, 16):
        raise _inconsistent("BitsAllocated is neither 8 nor 16")
    if not 0 < stored <= allocated or not stored - 1 <= found.high_bit < allocated:
        raise _inconsistent("BitsAllocated, BitsStored and HighBit do not fit together")
    if not 0 < rows * columns <= LARGEST_FILM:
        raise _inconsistent("Rows and Columns give a size that no film has")
    if found.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _inconsistent("PhotometricInterpretation is not known")
    return found


def decode_pixels(header: Dataset, form: PixelFormat) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode the only frame.

    Returns:
        `(rows, columns)` words, 8 or 16 bits wide; `form.stored_values` says what each stands for.

    Raises:
        Permanent: PIXELS_INCONSISTENT when data set and bytes contradict each other.
        MemoryError, Exception: whatever a decoder raises for a damaged frame.
    """
    data = header.get("PixelData")
    if not isinstance(data, bytes) or not data:
        raise _inconsistent("There is no PixelData")
    # Codecs report memory that they did not get as a damaged frame: ask for it here first, and untouched.
    np.empty(_WORKING_BYTES * form.rows * form.columns, np.uint8)
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if syntax.is_compressed:
        frame = get_frame(data, 0, number_of_frames=1)
        decoded = decode_frame(frame, syntax, _checked_header(frame, syntax, form), signed=form.signed)
        if decoded.size != form.rows * form.columns:
            raise _inconsistent("The compressed frame holds another number of pixels than its header says")
    elif form.bytes <= len(data) <= form.bytes + 1:
        decoded, _ = get_decoder(syntax).as_array(
            header,
            index=0,
            raw=True,
            correct_unused_bits=False,  # type: ignore[arg-type]  # pydicom types each option as all of them
        )
    else:
        # With a wrong length the geometry is in doubt, and a skewed film would be scored.
        raise _inconsistent("PixelData is longer or shorter than Rows and Columns say")
    # Lossy 8-bit code streams may stand in a data set of 16 bits.
    wide = decoded.astype(f"={decoded.dtype.kind}{form.bits_allocated // 8}", copy=False)
    words = np.ascontiguousarray(wide.reshape(form.rows, form.columns))
    return words.view(np.uint8) if form.bits_allocated == 8 else words.view(np.uint16)


def _checked_header(frame: bytes, syntax: UID, form: PixelFormat) -> CodeStream:
    stream = read_header(frame, syntax)
    if stream is None:
        raise Permanent(Reason.PIXELS_UNDECODABLE, "The compressed frame has no header that can be read.")
    if (stream.rows or form.rows, stream.columns or form.columns) != (form.rows, form.columns):
        raise _inconsistent("Rows and Columns are not those of the compressed frame")
    if stream.components != 1:
        raise _inconsistent("The compressed frame has several components and SamplesPerPixel is 1")
    if stream.bits > form.bits_allocated or (syntax == RLELossless and stream.bits != form.bits_allocated):
        raise _inconsistent("BitsAllocated is not that of the compressed frame")
    is_cut = syntax != RLELossless and _END not in frame[-_LONGEST_TAIL:]
    if is_cut or (syntax in JPEG_2000_FAMILY and not has_every_tile(frame)):
        # Some decoders fill what is missing with grey, which would be scored.
        raise Permanent(Reason.PIXELS_UNDECODABLE, "The compressed frame ends too early.")
    return stream


def _required(header: Dataset, keyword: str) -> int:
    found = integer(header, keyword)
    if found is None:
        raise _inconsistent(f"{keyword} is missing")
    return found


def _inconsistent(what: str) -> Permanent:
    return Permanent(Reason.PIXELS_INCONSISTENT, f"{what}.")
