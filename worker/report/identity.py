"""Whose film it is: identifiers go from the film to its results byte for byte.

A result whose PatientID drifted by one byte is filed as another patient's. So values are never decoded:
no character set, date or UID is understood, corrected or completed on the way.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from io import BytesIO
from typing import cast

from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_data_element

from dicom_node.errors import Permanent, Reason
from dicom_node.uids import derive_uid

INSTANCE_CREATOR_UID = derive_uid("covariance", "instance creator")
"""InstanceCreatorUID (0008,0014) of all that we write: by it a result that comes back is known as ours."""
SR_SERIES_DESCRIPTION = "AI CXR report - RESEARCH ONLY"
SC_SERIES_DESCRIPTION = "AI CXR heatmap - RESEARCH ONLY"

LARGEST_VALUE = 4096
"""Bytes. Several times what PS3.5 allows in any attribute here; a longer value is an attack or a defect."""


def _tags(*keywords: str) -> tuple[int, ...]:
    return tuple(cast(int, tag_for_keyword(keyword)) for keyword in keywords)


REQUIRED = _tags(
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
)
"""Of type 2 in every result: empty there when the film does not have them (PS3.3 C.7.1.1, C.7.2.1)."""
OPTIONAL = _tags(
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "IssuerOfPatientID",
    "StudyInstanceUID",
)
"""Copied where the film has them. Character set and time zone, because the copied values rest on them."""
COPIED = frozenset(REQUIRED + OPTIONAL)
_CITED = _tags(
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "PatientOrientation",
    "Laterality",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_PATIENT = _tags("PatientID", "IssuerOfPatientID", "PatientBirthDate")


def extract(header: Dataset) -> bytes:
    """Take what results copy or cite, as an Explicit VR Little Endian data set.

    All of it is text, whose bytes are the same in every transfer syntax. Call it before anything has read
    a value of `header`: pydicom forgets the bytes of a value that it has decoded.

    Raises:
        Permanent: UNREADABLE, when a value is no text or longer than LARGEST_VALUE.
    """
    out = _explicit()
    for tag in sorted(COPIED.union(_CITED)):
        value = _raw(header, tag)
        if value is not None:
            _put(out, tag, value)
    return out.getvalue()


def patient_digest(header: Dataset) -> str:
    """SHA-256 of the raw PatientID, issuer and birth date, unpadded: for the audit, unreadably."""
    digest = hashlib.sha256()
    for tag in _PATIENT:
        value = _bare(header, tag)
        digest.update(len(value).to_bytes(4, "big") + value)
    return digest.hexdigest()


def same_patient(sources: Iterable[bytes]) -> bool:
    """Whether films, told by what `extract` took of each, can be of one patient.

    Each names the same PatientID. An issuer and a birth date count where they are stated: many senders
    leave them out, and a date may stand as 1960.01.01 (the ACR-NEMA form, PS3.5 6.2).
    """
    headers = [cited(source) for source in sources]
    ids, issuers, births = ({_bare(header, tag) for header in headers} for tag in _PATIENT)
    dates = {date for birth in births if len(date := birth.replace(b".", b"")) == 8 and date.isdigit()}
    return len(ids) <= 1 and len(issuers - {b""}) <= 1 and len(dates) <= 1


def cited(source: bytes) -> Dataset:
    """Open what `extract` took, to read UIDs and codes from it."""
    return read_dataset(BytesIO(source), is_implicit_VR=False, is_little_endian=True)


def accession_number(source: bytes) -> bytes:
    """The raw AccessionNumber among what `extract` took, without its padding; empty where there is none."""
    return _bare(cited(source), *_tags("AccessionNumber"))


def study_of(source: bytes) -> str:
    """The StudyInstanceUID among what `extract` took, as it goes into results."""
    return _bare(cited(source), *_tags("StudyInstanceUID")).decode("ascii", "replace")


def graft(result: Dataset, source: bytes, out: DicomBytesIO, *, also: tuple[str, ...] = ()) -> None:
    """Encode a result with the identifiers of the film in their places.

    What is written is the data set in Explicit VR Little Endian, without file meta information.

    Args:
        result: our data set. Its own text is ASCII, so that it reads the same in any character set.
        source: what `extract` took from the film.
        out: where to write; megabytes of pixels are not copied once more.
        also: keywords of further attributes that this result takes from the film if it has them.
    """
    identifiers = cited(source)
    wanted = COPIED.union(_tags(*also))
    values = {tag: value for tag in wanted if (value := _raw(identifiers, tag)) is not None}
    # Here empty means absent: the default repertoire, or nothing to tell; an empty type 1C is not allowed.
    for tag in _tags("SpecificCharacterSet", *also):
        if not values.get(tag, b"").strip(b" \0"):
            values.pop(tag, None)
    values = dict.fromkeys(REQUIRED, b"") | values
    out.is_implicit_VR, out.is_little_endian = False, True
    for tag in sorted(values.keys() | result.keys()):
        if tag in values:
            _put(out, tag, values[tag])
        else:
            write_data_element(out, result[tag], "ascii")


def is_own_output(header: Dataset) -> bool:
    """Whether this is one of our own results that came back to us."""
    return header.get("InstanceCreatorUID") == INSTANCE_CREATOR_UID or header.get("SeriesDescription") in (
        SR_SERIES_DESCRIPTION,
        SC_SERIES_DESCRIPTION,
    )


def _raw(header: Dataset, tag: int) -> bytes | None:
    if tag not in header:
        return None
    element = cast(DataElement | RawDataElement, header.get_item(tag))
    if element.VR == "SQ":
        raise Permanent(
            Reason.UNREADABLE, f"The attribute {dictionary_keyword(tag)} is a sequence, not text."
        )
    value = element.value or b"" if isinstance(element, RawDataElement) else _encoded(header, element)
    if len(value) > LARGEST_VALUE:
        raise Permanent(
            Reason.UNREADABLE,
            f"The attribute {dictionary_keyword(tag)} has {len(value)} bytes, more than {LARGEST_VALUE}.",
        )
    return value


def _bare(header: Dataset, tag: int) -> bytes:
    return (_raw(header, tag) or b"").strip(b" \0")


def _encoded(header: Dataset, element: DataElement) -> bytes:
    # Only for data sets made in memory; those read from a file still have their bytes.
    out = _explicit()
    write_data_element(out, element, header.get("SpecificCharacterSet") or "ascii")
    return out.getvalue()[8:]


def _put(out: DicomBytesIO, tag: int, value: bytes) -> None:
    vr = dictionary_VR(tag)
    if len(value) % 2:  # Only in sources that break PS3.5 7.1.1.
        value += b"\0" if vr == "UI" else b" "
    # Every VR here has the short form of PS3.5 Table 7.1-2.
    out.write(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value)


def _explicit() -> DicomBytesIO:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    return out
