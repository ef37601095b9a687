"""Films that were tampered with, as a stranger would send them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, generate_uid

from dicom_node.dimse import Command, Field
from dicom_node.errors import Reason
from tests.dicom_node.build import encoded, store_request
from tests.hostile.build import MARK
from worker.phantom import phantom_dataset

ROWS, COLUMNS = 96, 80
FILM = "a film"
REFUSED = "nothing"
JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 70, 80))
JPEG_2000, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One object that is sent, what its sender is answered, and what is recorded of it."""

    name: str
    make: Callable[[], Object]
    answer: str
    """Status of the C-STORE, in hexadecimal."""
    record: Reason | str
    """FILM, REFUSED where nothing is kept, or the reason that the guarded decoder gives."""
    child: str = "lives"
    """Whether the decoder child that read it `lives` on or was `replaced`."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """A command, and the bytes after it."""

    command: Command
    content: bytes
    transfer_syntax: str


def kept(name: str, make: Callable[[], Object], record: Reason | str = FILM, **more: str) -> Sent:
    """Answered 0000."""
    return Sent(name=name, make=make, answer="0000", record=record, **more)


def refused(name: str, make: Callable[[], Object], answer: str = "C000") -> Sent:
    """Answered with a failure, and not kept."""
    return Sent(name=name, make=make, answer=answer, record=REFUSED)


@cache
def _phantom() -> Dataset:
    return phantom_dataset(1, rows=ROWS, columns=COLUMNS)


def film(**values: object) -> Dataset:
    """A sound frontal chest film with marked identifiers, and with changes; None takes an attribute away."""
    made = deepcopy(_phantom())
    made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID = (generate_uid() for _ in range(3))
    made.PatientName, made.PatientID, made.AccessionNumber = f"{MARK}^NAME", f"{MARK}ID", f"{MARK}ACC"
    for keyword, value in values.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def sent_as_is(made: Dataset, content: bytes | None = None) -> Object:
    """The object with a command that fits it; other bytes may take the place of its own."""
    return Object(
        command=store_request(made),
        content=encoded(made) if content is None else content,
        transfer_syntax=str(made.file_meta.TransferSyntaxUID),
    )


def changed(**values: object) -> Callable[[], Object]:
    """A film with other attributes."""
    return lambda: sent_as_is(film(**values))


def named(keyword: str, value: str) -> Callable[[], Object]:
    """A film one of whose UIDs is `value`, in its data set and, if it stands there, in the command."""
    return lambda: sent_as_is(film(**{keyword: value}))


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian, with any length."""
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    short = vr in (b"UI", b"LO", b"PN", b"US", b"UL", b"IS", b"DS", b"CS", b"SH")
    return head + (struct.pack("<H", length) if short else struct.pack("<HL", 0, length)) + value


def with_raw(raw: bytes, *, before: int) -> Callable[[], Object]:
    """A film with raw bytes before one of its elements."""

    def make() -> Object:
        made = film()
        content = encoded(made)
        at = content.index(_start(made, before))
        return sent_as_is(made, content[:at] + raw + content[at:])

    return make


def with_element(tag: int, raw: bytes) -> Callable[[], Object]:
    """A film one of whose elements is replaced by raw bytes."""

    def make() -> Object:
        made = film()
        content = encoded(made)
        at = content.index(_start(made, tag))
        length = struct.unpack_from("<H", content, at + 6)[0]
        return sent_as_is(made, content[:at] + raw + content[at + 8 + length :])

    return make


def _start(made: Dataset, tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + made[tag].VR.encode()


def renamed(**fields: str) -> Callable[[], Object]:
    """A film whose command says something else."""

    def make() -> Object:
        made = film()
        says = {Field.AFFECTED_SOP_CLASS: made.SOPClassUID, Field.AFFECTED_SOP_INSTANCE: made.SOPInstanceUID}
        says |= {Field[name]: value for name, value in fields.items()}
        plain = {Field.COMMAND: 1, Field.PRIORITY: 0}
        whole = sent_as_is(made)
        return Object(
            command=Command({**plain, **{field: str(value) for field, value in says.items()}}),
            content=whole.content,
            transfer_syntax=whole.transfer_syntax,
        )

    return make


def grey(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """A film's pixels, 12 bits."""
    return np.linspace(0, 4095, rows * columns).reshape(rows, columns).astype(np.uint16)


def compressed(frame: bytes | Callable[[], bytes], syntax: str, **values: object) -> Callable[[], Object]:
    """A film whose one frame is these bytes."""

    def make() -> Object:
        made = film(**values)
        made.file_meta.TransferSyntaxUID = UID(syntax)
        made.PixelData = encapsulate([frame if isinstance(frame, bytes) else frame()])
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        return sent_as_is(made)

    return make


def encapsulated(pixel_data: bytes, syntax: str) -> Callable[[], Object]:
    """A film whose encapsulated PixelData is these very bytes, without their delimiter."""

    def make() -> Object:
        made = film()
        made.file_meta.TransferSyntaxUID = UID(syntax)
        made.PixelData = encapsulate([b"ab"])
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        content = encoded(made)
        at = content.index(b"\xe0\x7f\x10\x00OB") + 12
        return sent_as_is(made, content[:at] + pixel_data)

    return make


@cache
def jpeg_2000() -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(grey(), reversible=True, bitspersample=12, codecformat="j2k"))


def with_siz(*, size: tuple[int, int] | None = None, tile: tuple[int, int] | None = None) -> bytes:
    """A JPEG 2000 frame of 96 x 80 whose SIZ marker claims (columns, rows) or tiles of another size."""
    frame = bytearray(jpeg_2000())
    at = frame.index(b"\xff\x51") + 6
    if size is not None:
        struct.pack_into(">2L", frame, at, *size)
        struct.pack_into(">2L", frame, at + 16, *size)
    if tile is not None:
        struct.pack_into(">2L", frame, at + 16, *tile)
    return bytes(frame)


def run_lengths(*starts: int, segments: int = 2, content: bytes = b"\x81\0" * 1000) -> bytes:
    """A run-length frame of any header."""
    return np.array([segments, *starts] + [0] * (15 - len(starts)), "<u4").tobytes() + content


EMPTY_SCANS = 30_000


def progressive_jpeg() -> bytes:
    """A megabyte of scans that change nothing of 25 million pixels, and cost time each."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("L", (5000, 5000)).save(file, "JPEG", progressive=True, optimize=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * EMPTY_SCANS + content[-2:]
