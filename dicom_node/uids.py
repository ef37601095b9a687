"""UIDs: which are valid, which classes and syntaxes are taken, and how ours are derived."""

from __future__ import annotations

import hashlib
import re
import uuid

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1
_NAMESPACE = uuid.UUID("6f2b4a52-0d0e-5c5a-9a40-0c0a7a51a9ce")

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
DIGITAL_XRAY_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
DIGITAL_XRAY_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# Only what the worker decodes is offered (Deflated is not: it cannot be bounded before it is inflated).
TRANSFER_SYNTAXES: tuple[str, ...] = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended, 12 bit
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
    "1.2.840.10008.1.2.4.202",  # HTJ2K lossless RPCL
    "1.2.840.10008.1.2.4.203",  # HTJ2K
    "1.2.840.10008.1.2.5",  # RLE lossless
)


def is_valid_uid(value: str) -> bool:
    """Whether `value` is a UID of PS3.5 9.1: digits and dots, at most 64 characters.

    A valid UID is safe as a file name: it can hold no separator and is never `.` or `..`.
    """
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def require_uids(*values: str) -> None:
    """Raise `ValueError` unless every value is a UID: what names a file must be one."""
    if not all(is_valid_uid(value) for value in values):
        raise ValueError("what names a file must be a valid UID")


def derive_uid(*parts: str) -> str:
    """Derive a UID under `2.25.` (PS3.5 B.2) from the parts: the same parts give the same UID for ever.

    So a result that is made twice is no second object in the chart.
    """
    name = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


# What we call ourselves on the wire and in file meta (PS3.7 D.3.3.2, PS3.10 7.1).
IMPLEMENTATION_CLASS = derive_uid("implementation class", "dicom_node")
IMPLEMENTATION_VERSION = "COVARIANCE"
PROVENANCE_CREATOR = derive_uid("private information creator", "spool provenance")
