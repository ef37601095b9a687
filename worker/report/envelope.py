"""What every result has in common: whose it is, who made it, when, and the exact bytes of its file.

UIDs follow from the images and the model, so a result that is made twice, after a crash, is one object and
not two. Its times are those of its own finding; what is sent is always the one that the ledger recorded.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from functools import cache
from importlib.metadata import version
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_node.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLEMENTATION_CLASS,
    IMPLEMENTATION_VERSION,
    derive_uid,
)
from worker.findings import ModelIdentity, Output, Role, StudyFinding
from worker.report import codes
from worker.report.identity import INSTANCE_CREATOR_UID, cited, graft
from worker.settings import ReportSection

PRODUCT = "CoVariance"


def envelope(
    finding: StudyFinding,
    source: bytes,
    settings: ReportSection,
    *,
    role: Role,
    sop_class_uid: str,
    part: str = "",
) -> Dataset:
    """Start a result: SOP common, study, series and equipment (PS3.3 C.12.1, C.7.2.1, C.7.3.1, C.7.5.1).

    Args:
        finding: what the result reports.
        source: the attributes of the film whose identifiers it will carry.
        settings: names that the site chose.
        role: one series for each role, study and model.
        sop_class_uid: what is made.
        part: tells results of one role apart, such as the film that a heatmap shows.
    """
    study, model = finding.study_instance_uid, finding.model.configuration
    made_at = local_time(finding.analysed_at, source, settings.time_zone)
    result = Dataset()
    result.SOPClassUID = sop_class_uid
    # With the generation: a result that comes to be in force again is an object of its own, the newest.
    names = (study, str(finding.generation), finding.input_set_hash, model, role, part)
    result.SOPInstanceUID = derive_uid(*names)
    result.InstanceCreatorUID = INSTANCE_CREATOR_UID
    result.InstanceCreationDate = result.ContentDate = f"{made_at:%Y%m%d}"
    result.InstanceCreationTime = result.ContentTime = f"{made_at:%H%M%S.%f}"
    result.StudyInstanceUID = study
    result.SeriesInstanceUID = derive_uid(study, model, role)
    result.InstanceNumber = finding.generation
    result.Manufacturer = as_ascii(settings.manufacturer)
    result.ManufacturerModelName = PRODUCT
    result.SoftwareVersions = software_version()
    result.ContributingEquipmentSequence = [_algorithm(finding.model, settings)]
    return result


def seal(result: Dataset, source: bytes, *, role: Role, also: tuple[str, ...] = ()) -> Output:
    """Encode a result as a Part 10 file that carries the identifiers of its film.

    Args:
        result: all that is ours.
        source: the attributes of the film, as `identity.extract` took them.
        role: what it is.
        also: keywords of further attributes to take from the film.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = f"{IMPLEMENTATION_VERSION}_{software_version()}"[:16]
    file = DicomBytesIO()
    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta)
    graft(result, source, file, also=also)
    content = file.getvalue()
    return Output(
        role=role,
        sop_class_uid=result.SOPClassUID,
        sop_instance_uid=result.SOPInstanceUID,
        series_instance_uid=result.SeriesInstanceUID,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def device_uid(model: ModelIdentity) -> str:
    """DeviceUID of the algorithm: another one whenever weights, recipe or threshold change."""
    return model.device_uid


def local_time(moment: datetime, source: bytes, hospital: ZoneInfo | None) -> datetime:
    """The moment in the time zone of the film's own times.

    DICOM dates and times are local; only TimezoneOffsetFromUTC, which results copy, says of where
    (PS3.3 C.12.1). Without it they are those of the hospital; None: its time zone is this machine's.
    """
    offset = str(cited(source).get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit() and int(offset[1:3]) < 15:
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        return moment.astimezone(timezone(timedelta(minutes=minutes if offset[0] == "+" else -minutes)))
    return moment.astimezone(hospital)


def coded(code: Code) -> Dataset:
    """A code as the item of a sequence (PS3.3 Table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def as_ascii(text: str) -> str:
    """Our own text, safe in whatever character set the film's identifiers bring."""
    return text.encode("ascii", "replace").decode("ascii").replace("\\", "/")


@cache
def software_version() -> str:
    """The installed version of this software."""
    return version("covariance")


def _algorithm(model: ModelIdentity, settings: ReportSection) -> Dataset:
    item = Dataset()
    item.Manufacturer = as_ascii(settings.manufacturer)
    item.ManufacturerModelName = as_ascii(model.name)[:64]
    item.SoftwareVersions = as_ascii(model.version)[:64]
    item.DeviceUID = device_uid(model)
    item.ContributionDescription = "Scored a chest radiograph for COVID-19"
    item.PurposeOfReferenceCodeSequence = [coded(codes.PROCESSING_EQUIPMENT)]
    return item
