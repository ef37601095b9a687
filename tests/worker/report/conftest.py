"""Films with the headers that real archives hold, byte by byte, and findings on them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.errors import Reason
from worker import preprocess
from worker.findings import (
    Eligibility,
    Film,
    ImageScore,
    ModelIdentity,
    Reading,
    Rejected,
    StudyFinding,
    Verdict,
)
from worker.report import identity

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1"

ORDINARY: dict[str, bytes] = {
    "SpecificCharacterSet": b"ISO_IR 100",
    "SOPClassUID": uids.COMPUTED_RADIOGRAPHY.encode(),
    "SOPInstanceUID": b"1.2.826.0.1.3680043.8.498.1.1.1",
    "StudyDate": b"20260102",
    "StudyTime": b"030405",
    "AccessionNumber": b"A100",
    "Modality": b"CR",
    "ReferringPhysicianName": b"Doctor^Any",
    "StudyDescription": b"THORAX",
    "PatientName": b"Phantom^Any",
    "PatientID": b"PHANTOM-1",
    "PatientBirthDate": b"19500101",
    "PatientSex": b"O",
    "BodyPartExamined": b"CHEST",
    "StudyInstanceUID": STUDY.encode(),
    "SeriesInstanceUID": SERIES.encode(),
    "StudyID": b"7",
    "PatientOrientation": b"L\\F",
}

LONGEST_UID = b"1.2.826.0.1.3680043.8.498." + b"1234567890" * 3 + b"12345678"

# What real archives hold. None stands for an attribute that is not there.
HEADERS: dict[str, dict[str, bytes | None]] = {
    "ordinary": {},
    "sex unknown": {"PatientSex": b"U"},
    "malformed dates": {"PatientBirthDate": b"1950.1.1", "StudyDate": b"02/01/2026", "StudyTime": b"3:4:5"},
    "empty": dict.fromkeys(("PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "PatientSex"), b""),
    "missing": dict.fromkeys(
        (
            "PatientName",
            "PatientBirthDate",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "StudyDescription",
            "PatientOrientation",
            "SpecificCharacterSet",
            "AccessionNumber",
            "ReferringPhysicianName",
        )
    ),
    "greek": {"SpecificCharacterSet": b"ISO_IR 126", "PatientName": "Διονυσιος".encode("iso8859-7")},
    "japanese": {
        "SpecificCharacterSet": b"\\ISO 2022 IR 87",
        "PatientName": b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B",
    },
    "chinese": {"SpecificCharacterSet": b"GB18030", "PatientName": "Wang^Xiao=王^小东".encode("gb18030")},
    "utf-8": {"SpecificCharacterSet": b"ISO_IR 192", "PatientName": "Müller^Jürgen=山田".encode()},
    "undeclared characters": {"SpecificCharacterSet": None, "PatientName": b"M\xfcller^J\xf6rg"},
    "unknown character set": {"SpecificCharacterSet": b"WINDOWS-1252", "PatientID": b"\x80 12"},
    "longest uids": {"StudyInstanceUID": LONGEST_UID, "SOPInstanceUID": LONGEST_UID[:-1] + b"9"},
    "spaces and zeros": {"PatientID": b"  00012  ", "AccessionNumber": b" 007", "StudyID": b"7\0"},
    "issuer": {"IssuerOfPatientID": b"HOSPITAL A", "TimezoneOffsetFromUTC": b"+0530"},
}


def encode(values: Mapping[str, bytes | None], *, implicit: bool = False, big: bool = False) -> bytes:
    """A data set of exactly these value bytes, whatever they are."""
    out, order = b"", ">" if big else "<"
    for keyword, value in sorted(values.items(), key=lambda item: tag_for_keyword(item[0]) or 0):
        if value is None:
            continue
        tag = tag_for_keyword(keyword)
        assert tag is not None
        vr = dictionary_VR(tag).encode()
        padding = (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        length = len(value) + len(padding)
        out += struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        if vr == b"SQ":
            out += vr + struct.pack(f"{order}HI", 0, length)
        else:
            out += struct.pack("<I", length) if implicit else vr + struct.pack(f"{order}H", length)
        out += value + padding
    return out


def opened(values: Mapping[str, bytes | None], syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN) -> Dataset:
    """The header as the decoder sees it: read from a Part 10 file, no value touched."""
    content = encode(
        values,
        implicit=syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN,
        big=syntax == uids.EXPLICIT_VR_BIG_ENDIAN,
    )
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(name)) + name
    meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta
    return dcmread(BytesIO(b"\0" * 128 + b"DICM" + meta + content))


@pytest.fixture(scope="session")
def ordinary() -> dict[str, bytes]:
    """The value bytes of a header without any trouble."""
    return dict(ORDINARY)


@pytest.fixture(scope="session")
def open_header() -> Callable[..., Dataset]:
    """`open_header(values, transfer syntax)` reads a header that holds exactly these bytes."""
    return opened


@pytest.fixture(params=HEADERS)
def header(request: pytest.FixtureRequest) -> dict[str, bytes | None]:
    """The value bytes of one header, for every kind of header."""
    return ORDINARY | HEADERS[request.param]


@pytest.fixture(scope="session")
def model() -> ModelIdentity:
    return ModelIdentity(
        name="densenet121-covid",
        version="1.2.3",
        sha256="0123456789abcdef" * 4,
        recipe=preprocess.RECIPE,
        engine="openvino 2026.4.1",
        precision="bf16",
        threshold=0.4,
        operating_point="youden@dev",
        temperature=1.5,
    )


@pytest.fixture(scope="session")
def read() -> Callable[..., Reading]:
    """`read(values, reason=None, open_questions=())` judges a header and, when eligible, adds a film."""

    def make(
        values: Mapping[str, bytes | None] = ORDINARY,
        reason: Reason | None = None,
        open_questions: tuple[str, ...] = (),
    ) -> Reading:
        dataset = opened(values)
        source, digest = identity.extract(dataset), identity.patient_digest(dataset)
        ramp_HW = np.tile(np.linspace(20, 230, 400).astype(np.uint8), (500, 1))
        film = Film(
            input_HW=np.zeros((preprocess.SIZE, preprocess.SIZE), np.uint8),
            display_HW=ramp_HW,
            rows=500,
            columns=400,
            bits_stored=12,
            inverted=False,
            window="none",
        )
        return Reading(
            sop_instance_uid=dataset.SOPInstanceUID,
            sop_class_uid=dataset.SOPClassUID,
            series_instance_uid=dataset.SeriesInstanceUID,
            eligibility=Eligibility(
                verdict=Verdict.INELIGIBLE if reason else Verdict.ELIGIBLE,
                reason=reason,
                open_questions=open_questions,
            ),
            source=source,
            patient_digest=digest,
            film=None if reason else film,
        )

    return make


@pytest.fixture(scope="session")
def find(model: ModelIdentity) -> Callable[..., StudyFinding]:
    """`find([(reading, probability)...], set_aside, quarantined, generation)` makes a finding."""

    def make(
        scored: list[tuple[Reading, float]],
        set_aside: tuple[Reading, ...] = (),
        quarantined: tuple[Rejected, ...] = (),
        generation: int = 1,
    ) -> StudyFinding:
        readings = [reading for reading, _ in scored] or list(set_aside)
        cam_hw = np.linspace(-6, 9, 100, dtype=np.float32).reshape(10, 10)
        return StudyFinding(
            study_instance_uid=str(identity.cited(readings[0].source).StudyInstanceUID),
            generation=generation,
            input_set_hash=f"{generation:064x}",
            analysed_at=datetime(2026, 1, 2, 3, 4, 5, 600700, UTC),
            model=model,
            scores=tuple(
                ImageScore(
                    reading=reading,
                    logit=model.temperature * float(np.log(p / (1 - p))),
                    probability=p,
                    cam_hw=cam_hw,
                )
                for reading, p in scored
            ),
            set_aside=set_aside,
            quarantined=quarantined,
        )

    return make
