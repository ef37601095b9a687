"""Which images are analysed. A pure judgement on the header; every exclusion has a reason that is shown.

Headers are often wrong or empty. What they say is believed, what they leave open is named, and the
site decides what becomes of such images.
"""

from __future__ import annotations

import re
from datetime import date

from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.errors import Reason
from worker.attributes import integer, items, text
from worker.findings import Eligibility, Verdict
from worker.report.identity import is_own_output
from worker.settings import EligibilitySection

_DIRECT = {uids.COMPUTED_RADIOGRAPHY, uids.DIGITAL_XRAY_FOR_PRESENTATION}
_MODALITIES = {"CR", "DX", "RG"}
_CAPTURE_MODALITIES = _MODALITIES | {"", "OT", "SC"}

_CHEST = re.compile(r"\b(CHEST\w*|THORA(X|CIC)|T[OÓ]RAX|TORACE|CXR|LUNGS?|LUNGEN?|POUMONS?|PULMON\w*)\b")
_ELSEWHERE = re.compile(
    r"\b(ABDOMEN|KUB|PELVIS|HIP|FEMUR|KNEE|LEG|ANKLE|FOOT|TOES?|CALCANEUS|HAND|FINGERS?|THUMB|WRIST|FOREARM|"
    r"ELBOW|HUMERUS|SHOULDER|CLAVICLE|SCAPULA|SKULL|HEAD|FACE|NECK|SINUS(ES)?|JAW|MANDIBLE|"
    r"[CTL]?SPINE|SACRUM|COCCYX|RIBS?|STERNUM|BREAST|EXTREMITY)\b"
)
_UNSPECIFIC = {"", "UNKNOWN", "OTHER", "BODY", "TRUNK", "WHOLEBODY", "NONE", "N/A", "DEFAULT", "GENERAL"}
_UNSPECIFIC |= {"MISC", "EXAM", "TORSO", "UPPER BODY", "TX"}
_BODY_TEXTS = (
    "SeriesDescription",
    "StudyDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
    "RequestedProcedureDescription",
    "AcquisitionDeviceProcessingDescription",
)
_VIEW_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
_FRONTAL = re.compile(r"\b(PA|AP|FRONTAL|(POSTERO|ANTERO)[ -]?(ANTERIOR|POSTERIOR))\b")
_NOT_FRONTAL = re.compile(
    r"\b(LAT|LATERAL\w*|PROFIL\w*|SEITL|SEITLICH|OBL|OBLIQUE|LL|RL|[LR]LAT|LLD|RLD|[LR][AP]O|[LR]LO|"
    r"DECUB(ITUS)?)\b"
)
_COMPANION = re.compile(r"\b(BONES?|SOFT ?TISSUE|SUBTRACT\w*|SUPPRESS\w*|COMPANION)\b")
_PROCESSING_TEXTS = (
    "ImageType",
    "SeriesDescription",
    "DerivationDescription",
    "AcquisitionDeviceProcessingDescription",
)

_OLDEST_YEARS = 130.0
_DAYS_IN_YEAR = 365.25


def judge(header: Dataset, settings: EligibilitySection) -> Eligibility:
    """Decide whether an image is analysed, from its header alone.

    Returns:
        INELIGIBLE with the first reason that holds. INDETERMINATE when the header leaves something open,
        with a reason only when the site does not want such images analysed. Else ELIGIBLE.
    """
    # Our own first: as a class that is not analysed, an echo would breed a report about itself.
    if is_own_output(header):
        return _ineligible(Reason.OWN_OUTPUT)
    reason = _class_reason(header, settings)
    body, view, years = _is_chest(header), _is_frontal(header), _age_years(header)
    minimum = settings.minimum_age_years
    if reason is None and body is False:
        reason = Reason.BODY_PART
    if reason is None and view is False:
        reason = Reason.NOT_FRONTAL
    if reason is None and years is not None and years < minimum:
        reason = Reason.AGE
    reason = reason or _image_reason(header, settings)
    if reason is not None:
        return _ineligible(reason)
    known = {
        "BodyPartExamined": body is not None,
        "ViewPosition": view is not None,
        "PatientAge": years is not None or minimum == 0,
        # SECONDARY: made after the examination (PS3.3 C.7.6.1.1.2), of whatever it was made.
        "ImageType": text(header, "ImageType").split("\\")[1:2] != ["SECONDARY"] or _is_capture(header),
    }
    questions = tuple(keyword for keyword, is_known in known.items() if not is_known)
    if not questions:
        return Eligibility(verdict=Verdict.ELIGIBLE)
    skipped = settings.indeterminate == "skip"
    return Eligibility(
        verdict=Verdict.INDETERMINATE,
        reason=Reason.INDETERMINATE if skipped else None,
        open_questions=questions,
    )


def _ineligible(reason: Reason) -> Eligibility:
    return Eligibility(verdict=Verdict.INELIGIBLE, reason=reason)


def _class_reason(header: Dataset, settings: EligibilitySection) -> Reason | None:
    sop_class, modality = text(header, "SOPClassUID"), text(header, "Modality")
    capture = _is_capture(header) and settings.secondary_capture
    if not capture and sop_class not in _DIRECT:
        return Reason.SOP_CLASS
    if text(header, "PresentationIntentType") == "FOR PROCESSING":
        return Reason.SOP_CLASS
    return None if modality in (_CAPTURE_MODALITIES if capture else _MODALITIES) else Reason.MODALITY


def _is_capture(header: Dataset) -> bool:
    return text(header, "SOPClassUID") == uids.SECONDARY_CAPTURE


def _image_reason(header: Dataset, settings: EligibilitySection) -> Reason | None:
    if text(header, "QualityControlImage") == "YES":
        return Reason.QUALITY_CONTROL
    if _COMPANION.search(" / ".join(_words(header, keyword) for keyword in _PROCESSING_TEXTS)):
        return Reason.COMPANION
    if (integer(header, "NumberOfFrames") or 1) > 1:
        return Reason.MULTIFRAME
    photometric = text(header, "PhotometricInterpretation")
    if (integer(header, "SamplesPerPixel") or 1) > 1 or photometric.startswith(("RGB", "YBR", "PALETTE")):
        return Reason.COLOUR
    sides = [integer(header, keyword) for keyword in ("Rows", "Columns")]
    # Zero or a missing size is a defect, and found as one when the pixels are read.
    if any(side and side < settings.minimum_pixels for side in sides):
        return Reason.TOO_SMALL
    return None


def _is_chest(header: Dataset) -> bool | None:
    """Body part, region code, then descriptions; None when none of them says."""
    part = text(header, "BodyPartExamined").replace("_", " ")
    if _CHEST.search(part):
        return True
    if part not in _UNSPECIFIC:
        # A word of the site's own may be any part: of the chest it is where this very series says so.
        series = " / ".join(_words(header, keyword) for keyword in _VIEW_TEXTS)
        return not _ELSEWHERE.search(part) and _CHEST.search(series) is not None
    for item in items(header, "AnatomicRegionSequence"):
        meaning = text(item, "CodeMeaning")
        if meaning:
            return _CHEST.search(meaning) is not None
    words = " / ".join(_words(header, keyword) for keyword in _BODY_TEXTS)
    if _CHEST.search(words):
        return True
    return False if _ELSEWHERE.search(words) else None


def _is_frontal(header: Dataset) -> bool | None:
    """View position, view code, orientation, then descriptions; None when none of them says."""
    codes = [text(item, "CodeMeaning").replace("-", " ") for item in items(header, "ViewCodeSequence")]
    for said in (_words(header, "ViewPosition"), *codes):
        found = _which_view(said)
        if found is not None:
            return found
    directions = [value[:1] for value in text(header, "PatientOrientation").split("\\")]
    if len(directions) == 2 and all(directions):
        # A frontal view lies in the plane left-right and head-foot, whichever way it is turned.
        return not set(directions) & {"A", "P"}
    return _which_view(" / ".join(_words(header, keyword) for keyword in _VIEW_TEXTS))


def _which_view(said: str) -> bool | None:
    frontal, other = _FRONTAL.search(said), _NOT_FRONTAL.search(said)
    # "CHEST PA AND LAT" names the examination, not the image.
    return None if bool(frontal) == bool(other) else bool(frontal)


def _words(header: Dataset, keyword: str) -> str:
    abbreviated = re.sub(
        r"\b([AP])\. ?([AP])\b", r"\1\2", text(header, keyword)
    )  # "p.a.", as Germans write it
    return re.sub(r"[_\\.,;:()\[\]]", " ", abbreviated)


def _age_years(header: Dataset) -> float | None:
    """PatientAge, else the birth date's distance to the study; None when neither makes sense."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", text(header, "PatientAge"))
    if match:
        unit = {"Y": 1.0, "M": 1 / 12, "W": 7 / _DAYS_IN_YEAR, "D": 1 / _DAYS_IN_YEAR}[match[2]]
        # 000Y is what modalities write that know no age: of an infant they say days, weeks or months.
        if match[2] != "Y" or 0 < int(match[1]) <= _OLDEST_YEARS:
            return int(match[1]) * unit
    born = _date(header, "PatientBirthDate")
    taken = next(
        (d for d in (_date(header, k) for k in ("StudyDate", "AcquisitionDate", "SeriesDate")) if d), None
    )
    if born is None or taken is None:
        return None
    # By the calendar: whoever turns 18 today is of age.
    years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    return years if 0 <= years <= _OLDEST_YEARS else None


def _date(header: Dataset, keyword: str) -> date | None:
    digits = re.fullmatch(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", text(header, keyword))
    try:
        return date(*map(int, digits.groups())) if digits else None
    except ValueError:
        return None
