"""What a compressed frame says of itself, read before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass
from struct import error, unpack_from

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    RLELossless,
)

JPEG_2000_FAMILY = frozenset((JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K))
_SIZ = b"\xff\x4f\xff\x51"  # start of code stream, then image and tile size (ISO/IEC 15444-1 A.5.1)
_RLE_HEADER = 64  # bytes: the number of segments and the offsets of 15 (PS3.5 G.5)
_TILE_PART = b"\xff\x90"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
# Start of frame of every coding process (ISO/IEC 10918-1 B.1.1.3), and of JPEG-LS (14495-1 C.1.1).
_START_OF_FRAME = {0xF7} | set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, kw_only=True)
class CodeStream:
    """The size that a decoder would allocate. None where the format does not say."""

    rows: int | None
    columns: int | None
    components: int
    bits: int
    """Of one sample."""


def read_header(frame: bytes, transfer_syntax_uid: str) -> CodeStream | None:
    """Parse the header of one compressed frame; None when there is none to be found."""
    try:
        if transfer_syntax_uid == RLELossless:
            return _rle(frame)
        if transfer_syntax_uid in JPEG_2000_FAMILY:
            return _jpeg_2000(frame)
        return _jpeg(frame)
    except (ValueError, LookupError, ArithmeticError):
        return None


def has_every_tile(frame: bytes) -> bool:
    """Whether a JPEG 2000 frame holds a part of each of its tiles (ISO/IEC 15444-1 A.4.2), to their end.

    OpenJPEG fills the tiles that are missing, and what it fills them with would be scored.
    """
    try:
        at = frame.index(_SIZ) + len(_SIZ) + 4
        right, bottom, _, _, width, height, left, top = unpack_from(">8L", frame, at)
        expected = -(-(right - left) // width) * -(-(bottom - top) // height)
        at = frame.index(_SIZ) + 2
        while frame[at : at + 2] != _TILE_PART and at < len(frame):
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        found = set()
        while frame[at : at + 2] == _TILE_PART:
            tile, length = unpack_from(">HL", frame, at + 4)
            found.add(tile)
            # A length of 0 is that of the last part, which goes to the end.
            at = at + length if length else len(frame)
    except (ValueError, LookupError, ArithmeticError, error):
        return False
    return at <= len(frame) and len(found) == expected == max(found, default=0) + 1


def _rle(frame: bytes) -> CodeStream | None:
    # One segment for each byte of a sample (PS3.5 G.3.1); the size stands only in the data set.
    if len(frame) < _RLE_HEADER:
        return None
    segments, *starts = unpack_from("<16L", frame)
    starts = starts[:segments]
    # The decoder (imagecodecs 2026.3) reads wherever the header points to.
    if starts != sorted(starts) or not all(_RLE_HEADER <= start <= len(frame) for start in starts):
        return None
    return CodeStream(rows=None, columns=None, components=1, bits=8 * segments)


def _jpeg_2000(frame: bytes) -> CodeStream | None:
    at = frame.index(_SIZ) + len(_SIZ) + 4
    if len(frame) < at + 37:
        return None
    right, bottom, left, top = unpack_from(">4L", frame, at)
    components, depth = unpack_from(">HB", frame, at + 32)
    return CodeStream(rows=bottom - top, columns=right - left, components=components, bits=(depth & 0x7F) + 1)


def _jpeg(frame: bytes) -> CodeStream | None:
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _STANDALONE:  # fill bytes have no length
            at += 1 if marker == 0xFF else 2
        elif marker in _START_OF_FRAME:
            bits, rows, columns, components = frame[at + 4], *_words(frame, at + 5), frame[at + 9]
            return CodeStream(rows=rows, columns=columns, components=components, bits=bits)
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _words(frame: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")
