"""The head of a spooled file (PS3.10 7.1): zeroed preamble, file meta, and who sent it, in a fixed size.

The data set starts at the same offset in every spooled file, so that it is written as it arrives and
the head afterwards, when the series is known. The JSON of the private information fills what is left.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from struct import Struct

from pydicom import dcmread

from dicom_node import uids
from dicom_node.lanes import Lane

HEAD_BYTES = 1024
"""Bytes before the data set of a spooled file; the longest head needs about 800."""

_SHORT = Struct("<HH2sH")
_LONG = Struct("<HH2sxxL")
_GROUP_LENGTH_BYTES = 12
_PREFIX = bytes(128) + b"DICM"  # a foreign preamble may be an executable: ours is zeroed


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What file meta has no element for: the series, the sender's address, times (ISO 8601, UTC), lane."""

    series: str
    address: str
    received_at: str
    lane: str = Lane.ROUTINE
    again_at: str = ""
    """When the same bytes were received once more, last."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a spooled file, read back."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    provenance: Provenance


def write_head(head: Head) -> bytes:
    """Encode a head, `HEAD_BYTES` long."""
    elements = b"".join(
        (
            _LONG.pack(2, 0x0001, b"OB", 2) + b"\0\1",
            _text(0x0002, b"UI", head.sop_class_uid),
            _text(0x0003, b"UI", head.sop_instance_uid),
            _text(0x0010, b"UI", head.transfer_syntax_uid),
            _text(0x0012, b"UI", uids.IMPLEMENTATION_CLASS),
            _text(0x0013, b"SH", uids.IMPLEMENTATION_VERSION),
            _text(0x0016, b"AE", head.calling_ae),
            _text(0x0018, b"AE", head.called_ae),
            _text(0x0100, b"UI", uids.PROVENANCE_CREATOR),
        )
    )
    told = asdict(head.provenance)
    if head.provenance.lane == Lane.ROUTINE:
        # Without rules of [lanes] a head is as earlier versions wrote it, and can be read by them.
        del told["lane"]
    if not head.provenance.again_at:
        del told["again_at"]
    private = json.dumps(told, separators=(",", ":")).encode()
    room = HEAD_BYTES - len(_PREFIX) - _GROUP_LENGTH_BYTES - len(elements) - _LONG.size
    if len(private) > room:
        raise ValueError("the head of a spooled file has no room for its provenance")
    elements += _LONG.pack(2, 0x0102, b"OB", room) + private.ljust(room)
    group_length = _SHORT.pack(2, 0x0000, b"UL", 4) + len(elements).to_bytes(4, "little")
    return _PREFIX + group_length + elements


def read_head(content: bytes) -> Head:
    """Decode the head of a spooled file from its first `HEAD_BYTES`."""
    meta = dcmread(io.BytesIO(content)).file_meta
    return Head(
        sop_class_uid=meta.MediaStorageSOPClassUID,
        sop_instance_uid=meta.MediaStorageSOPInstanceUID,
        transfer_syntax_uid=meta.TransferSyntaxUID,
        calling_ae=meta.SourceApplicationEntityTitle or "",
        called_ae=meta.ReceivingApplicationEntityTitle or "",
        provenance=_provenance(json.loads(meta.PrivateInformation)),
    )


def _provenance(told: dict[str, str]) -> Provenance:
    """What we know of it: a later version, after which this one came back, may have told more."""
    known = {field.name for field in fields(Provenance)}
    found = Provenance(**{name: value for name, value in told.items() if name in known})
    return found if found.lane in set(Lane) else replace(found, lane=Lane.ROUTINE)


def data_set_offset(descriptor: int) -> int:
    """Where the data set of a Part 10 file begins, in bytes. Raises `ValueError` where it is none."""
    start = os.pread(descriptor, len(_PREFIX) + _GROUP_LENGTH_BYTES, 0)
    if start[128:132] != b"DICM" or start[132:140] != _SHORT.pack(2, 0x0000, b"UL", 4):
        raise ValueError("a file to be sent is no DICOM Part 10 file")
    return len(start) + int.from_bytes(start[140:144], "little")


def _text(number: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    raw += (b"\0" if vr == b"UI" else b" ") * (len(raw) % 2)
    return _SHORT.pack(2, number, vr, len(raw)) + raw
