"""The UIDs of a received data set, found by walking its header (PS3.5 7.1) and no further than needed.

What is walked is hostile until proven otherwise: depth, number of elements and every length are
bounded, nothing is recursive, and no value is looked at but the four UIDs and what a rule of [lanes] names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from struct import Struct

from dicom_node import uids
from dicom_node.errors import CovarianceError

Read = Callable[[int, int], bytes]
"""`read(offset, count)` of the data set; fewer bytes where it ends."""

_SOP_CLASS, _SOP_INSTANCE = 0x0008_0016, 0x0008_0018
_STUDY, _SERIES = 0x0020_000D, 0x0020_000E
_WANTED = {_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF

# VRs with a length of 16 bits (PS3.5 Table 7.1-2); every other one, known or not, has 32.
_SHORT = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
_MAXIMUM_DEPTH = 100
_MAXIMUM_ELEMENTS = 20_000
_WINDOW = 8192
_LONGEST_HEADER = 12
_LONGEST_TEXT = 64


class UnreadableDataSet(CovarianceError):
    """The data set cannot be understood, or does not say which study, series and object it is."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which object a data set says that it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class _Encoding:
    explicit: bool
    short: Struct
    long: Struct
    tag: Struct


_LITTLE = (Struct("<H"), Struct("<L"), Struct("<HH"))
_IMPLICIT = _Encoding(False, *_LITTLE)
_ENCODINGS = {
    uids.IMPLICIT_VR_LITTLE_ENDIAN: _IMPLICIT,
    uids.EXPLICIT_VR_BIG_ENDIAN: _Encoding(True, Struct(">H"), Struct(">L"), Struct(">HH")),
}
_EXPLICIT = _Encoding(True, *_LITTLE)  # every compressed syntax, too (PS3.5 A.4)


def read_identity(read: Read, size: int, transfer_syntax_uid: str) -> Identity:
    """Find the UIDs of a data set of `size` bytes; stops after (0020,000E). Raises `UnreadableDataSet`."""
    walk = _Walk(read, size, _ENCODINGS.get(transfer_syntax_uid, _EXPLICIT))
    found: dict[int, str] = {}
    previous = 0
    while previous < _SERIES and not walk.at_end():
        tag, length = walk.element()
        if tag <= previous:
            raise UnreadableDataSet("the elements are not in ascending order")
        previous = tag
        if tag in _WANTED:
            found[tag] = walk.uid(length)
        elif tag < _SERIES:
            walk.skip(length)
    if missing := _WANTED - found.keys():
        named = ", ".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in sorted(missing))
        raise UnreadableDataSet(f"the data set lacks {named}")
    return Identity(
        sop_class_uid=found[_SOP_CLASS],
        sop_instance_uid=found[_SOP_INSTANCE],
        study_instance_uid=found[_STUDY],
        series_instance_uid=found[_SERIES],
    )


def read_values(read: Read, size: int, transfer_syntax_uid: str, tags: Collection[int]) -> dict[int, str]:
    """Short texts of the data set by tag; what is absent, long or behind what cannot be read is left out."""
    walk = _Walk(read, size, _ENCODINGS.get(transfer_syntax_uid, _EXPLICIT))
    found: dict[int, str] = {}
    last, previous = max(tags, default=0), 0
    # A rule that cannot be asked does not fit: it is no reason to refuse the object.
    with contextlib.suppress(UnreadableDataSet):
        while previous < last and not walk.at_end():
            tag, length = walk.element()
            if tag <= previous:
                break
            previous = tag
            if tag in tags and length <= _LONGEST_TEXT:
                found[tag] = walk.text(length)
            else:
                walk.skip(length)
    return found


class _Walk:
    """A position in the data set."""

    def __init__(self, read: Read, size: int, encoding: _Encoding) -> None:
        self._read = read
        self._size = size
        self._encoding = encoding
        self._offset = 0
        self._window, self._window_start = b"", 0
        self._elements = 0

    def _peek(self, count: int) -> bytes:
        start = self._offset - self._window_start
        if start < 0 or start + count > len(self._window):
            self._window, self._window_start, start = self._read(self._offset, _WINDOW), self._offset, 0
        return self._window[start : start + count]

    def at_end(self) -> bool:
        return self._offset >= self._size

    def element(self) -> tuple[int, int]:
        """Read the header of an element: tag and length; the position is then at its value."""
        self._elements += 1
        if self._elements > _MAXIMUM_ELEMENTS:
            raise UnreadableDataSet("too many elements before the series is named")
        tag, _, length = self._header(self._encoding)
        return tag, length

    def _header(self, encoding: _Encoding) -> tuple[int, bytes, int]:
        head = self._peek(_LONGEST_HEADER)
        if len(head) < 8:
            raise UnreadableDataSet("the data set ends within an element")
        group, number = encoding.tag.unpack_from(head)
        tag = group << 16 | number
        vr = head[4:6]
        if group == 0xFFFE or not encoding.explicit:
            vr, size, length = b"", 8, encoding.long.unpack_from(head, 4)[0]
        elif vr in _SHORT:
            size, length = 8, encoding.short.unpack_from(head, 6)[0]
        elif vr.isalpha() and vr.isupper() and len(head) == _LONGEST_HEADER:
            size, length = 12, encoding.long.unpack_from(head, 8)[0]
        else:
            raise UnreadableDataSet("an element has no value representation")
        self._vr = vr
        self._offset += size
        return tag, vr, length

    def uid(self, length: int) -> str:
        if length > 66:
            raise UnreadableDataSet("a UID is longer than 64 characters")
        raw = self._peek(length)
        self._offset += length
        value = raw.rstrip(b"\0 ").decode("ascii", "replace")
        if len(raw) != length or not uids.is_valid_uid(value):
            raise UnreadableDataSet("a UID is not valid")
        return value

    def text(self, length: int) -> str:
        raw = self._peek(length)
        self._offset += length
        return raw.decode("ascii", "replace").strip("\0 ")

    def skip(self, length: int) -> None:
        """Go past a value; one of undefined length is walked to its delimiter."""
        if length == _UNDEFINED:
            self._skip_undefined()
            return
        self._offset += length
        if self._offset > self._size:
            raise UnreadableDataSet("an element is longer than the data set")

    def _skip_undefined(self) -> None:
        # Each entry is a container that has not ended: (is it an item, encoding of what it holds).
        # UN of undefined length holds Implicit VR Little Endian (PS3.5 6.2.2).
        open_containers = [(False, _IMPLICIT if self._vr == b"UN" else self._encoding)]
        while open_containers:
            in_item, encoding = open_containers[-1]
            self._elements += 1
            if len(open_containers) > _MAXIMUM_DEPTH or self._elements > _MAXIMUM_ELEMENTS:
                raise UnreadableDataSet("sequences are nested too deep or hold too much")
            tag, vr, length = self._header(encoding)
            if tag == (_ITEM_END if in_item else _SEQUENCE_END):
                open_containers.pop()
            elif not in_item and tag != _ITEM:
                raise UnreadableDataSet("a sequence holds what is no item")
            elif length != _UNDEFINED:
                self.skip(length)
            else:
                within = _IMPLICIT if vr == b"UN" else encoding
                open_containers.append((not in_item, within))
