"""The values that go from station to station. They never change once made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import Reason
from dicom_node.uids import derive_uid

LONGEST_DISPLAY = 1024
"""Pixels on the long side of a film as people see it."""


class Verdict(StrEnum):
    """Whether an image is analysed."""

    ELIGIBLE = "eligible"
    INELIGIBLE = "ineligible"
    INDETERMINATE = "indeterminate"


class Vendor(StrEnum):
    """Who made the apparatus."""

    GE = "ge"
    SIEMENS = "siemens"
    PHILIPS = "philips"
    FUJIFILM = "fujifilm"
    AGFA = "agfa"
    CARESTREAM = "carestream"
    CANON = "canon"
    KONICA = "konica"
    SAMSUNG = "samsung"
    SHIMADZU = "shimadzu"
    OTHER = "other"
    UNKNOWN = "unknown"


class View(StrEnum):
    """How the patient stood before it."""

    PA = "pa"
    AP = "ap"
    LATERAL = "lateral"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """The judgement on one header: a verdict, a reason when it is not eligible, and what was left open."""

    verdict: Verdict
    reason: Reason | None = None
    open_questions: tuple[str, ...] = ()
    """What the header leaves open, as DICOM keywords (`ViewPosition`, `PatientAge`)."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """A decoded radiograph, bright where the body is dense (as MONOCHROME2 shows it)."""

    input_HW: NDArray[np.uint8]
    """The network's input after the recipe, `(size, size)`."""
    display_HW: NDArray[np.uint8]
    """For people: window applied, aspect kept, long side at most `LONGEST_DISPLAY` pixels."""
    rows: int
    columns: int
    bits_stored: int
    inverted: bool
    """Whether the stored values were MONOCHROME1 and were inverted (exactly once)."""
    window: str
    """The VOI transformation used, in words (`LINEAR 2048/4096`, `LUT`, `none`)."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a guarded child process made of one spooled file."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    eligibility: Eligibility
    source: bytes
    """Attributes that results copy or cite, Explicit VR Little Endian, values byte-exact."""
    patient_digest: str
    """SHA-256 of the raw PatientID, issuer and birth date, for the audit (`same_patient` compares)."""
    film: Film | None = None
    """None when the image is not analysed."""
    manufacturer: Vendor = Vendor.UNKNOWN
    view: View = View.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One spooled file that cannot be scored, and why: quarantined."""

    sop_instance_uid: str
    reason: Reason
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One forward pass over a batch."""

    logits_B: NDArray[np.float32]
    cams_Bhw: NDArray[np.float32]
    """Exact class activation maps: sum over channels of weight times rectified feature."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """One analysed image."""

    reading: Reading
    logit: float
    probability: float
    cam_hw: NDArray[np.float32]


Decision = Literal["positive", "negative"]


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model and engine made a result; stands in every output and in the audit."""

    name: str
    version: str
    sha256: str
    """SHA-256 of `model.onnx`."""
    recipe: str
    engine: str
    """Engine name and version, e.g. `openvino 2026.4.1`."""
    precision: str
    threshold: float
    """On the probability; a study at or above it is positive."""
    operating_point: str
    """How the threshold was chosen, e.g. `youden@dev`."""
    temperature: float = 1.0
    """probability = sigmoid(logit / temperature)."""

    @property
    def configuration(self) -> str:
        """SHA-256 over all that decides on a result, and not over the machine that computed it."""
        decides = (self.sha256, self.version, self.recipe, self.temperature, self.threshold)
        return hashlib.sha256(repr((*decides, self.operating_point)).encode()).hexdigest()

    @property
    def device_uid(self) -> str:
        """DeviceUID of the algorithm: another one whenever weights, recipe or threshold change."""
        return derive_uid("device", self.configuration)


@dataclass(frozen=True, kw_only=True)
class StudyFinding:
    """The result of one generation of one study: scored, or not analysed by policy."""

    study_instance_uid: str
    generation: int
    input_set_hash: str
    """SHA-256 over the images that the result rests on, and over whether they were analysed."""
    analysed_at: datetime
    model: ModelIdentity
    scores: tuple[ImageScore, ...]
    """Analysed images, the decisive one (highest logit) first; empty when none was eligible."""
    set_aside: tuple[Reading, ...]
    """Images that policy excluded, each with its reason."""
    quarantined: tuple[Rejected, ...]

    @property
    def decision(self) -> Decision | None:
        """The study is positive when any frontal image is; None when none was analysed."""
        if not self.scores:
            return None
        return "positive" if self.scores[0].probability >= self.model.threshold else "negative"


class Role(StrEnum):
    """Kinds of objects that we write back."""

    SR = "sr"
    SC = "sc"
    REJECTION = "rejection"
    """A Key Object Selection that rejects objects of a withdrawn model (IHE IOCM)."""
    WITHDRAWAL = "withdrawal"
    """An SR that says so, for destinations that take no rejection notes."""


NOTICES = frozenset((Role.REJECTION, Role.WITHDRAWAL))
"""What is said about results of a withdrawn model: it is sent although the result is superseded."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One object to write back, as the exact bytes of its Part 10 file."""

    role: Role
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class KeptOutput:
    """An output whose bytes are durable in the outbox."""

    role: Role
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    path: Path
