"""The oracle: what senders were answered 0x0000 for, against what the system says once it is at rest.

It believes nobody's word: spooled files are hashed again, and what the PACS holds is read from its objects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from dicom_node import uids
from dicom_node.file_meta import HEAD_BYTES
from worker.findings import Role
from worker.ledger import DeliveryState, Disposition, JobState, Ledger, StudyRecord

PROVEN = (DeliveryState.COMMITTED, DeliveryState.VERIFIED)
_GROUP_END = 144  # preamble, prefix and the length of the file meta group, PS3.10 7.1
_KINDS = {uids.COMPREHENSIVE_3D_SR: "SR", uids.SECONDARY_CAPTURE: "SC"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An object that its sender was answered 0x0000 for; `sha256` is of its data set as it was sent."""

    study_instance_uid: str
    sop_instance_uid: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class AtPacs:
    """One object of ours at the PACS, as its own attributes tell. `sha256` is of the file that we sent."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    kind: str
    """SR or SC."""
    device_uid: str
    """Stands for the model configuration."""
    generation: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Every violation, in words, and where the images ended."""

    lost: tuple[str, ...] = ()
    """Answered with 0x0000, and not in the spool, not accounted for, or scored and never reported."""
    duplicated: tuple[str, ...] = ()
    """There more often than once."""
    untrue: tuple[str, ...] = ()
    """Spool, ledger, outbox and PACS do not say the same."""
    ends: Mapping[str, int] = field(default_factory=dict)
    """Images by disposition, and by reason where they have one."""

    @property
    def violations(self) -> tuple[str, ...]:
        return (*self.lost, *self.duplicated, *self.untrue)


def data_set_sha256(part10: bytes) -> str:
    """SHA-256 of what follows the file meta group."""
    return hashlib.sha256(_data_set(part10)).hexdigest()


def read_at_pacs(part10: bytes) -> AtPacs:
    """What an archive gives back of one of our objects, whatever file meta it has put before it."""
    header = dcmread(DicomBytesIO(part10), stop_before_pixels=True)
    return AtPacs(
        study_instance_uid=str(header.StudyInstanceUID),
        series_instance_uid=str(header.SeriesInstanceUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        kind=_KINDS.get(header.SOPClassUID, str(header.SOPClassUID)),
        device_uid=str(header.ContributingEquipmentSequence[0].DeviceUID),
        generation=int(header.InstanceNumber),
        sha256=hashlib.sha256(_our_head(header) + _data_set(part10)).hexdigest(),
    )


def held_in(folder: Path) -> list[AtPacs]:
    """What `deploy.pacs.StandInPacs` holds in its folder."""
    return [read_at_pacs(path.read_bytes()) for path in sorted(folder.glob("*/*.dcm"))]


def judge(sent: Iterable[Sent], *, spool: Path, ledger: Ledger, pacs: Collection[AtPacs]) -> Judgement:
    """Compare everything with everything. The system is to be at rest, and may have been stopped.

    Args:
        sent: the ledger of the senders, who repeat an object until they are answered.
        spool: root of the spool.
        ledger: opened by whoever asks.
        pacs: all objects of ours that the one destination holds.
    """
    studies = _all_studies(ledger)
    sent = set(sent)
    images = Counter(
        Sent(study_instance_uid=one.study_instance_uid, sop_instance_uid=i.sop_instance_uid, sha256=i.sha256)
        for one in studies
        for i in one.images
    )
    lost = [*_unaccounted(sent, images), *_rotten(sent, spool), *_unreported(studies)]
    duplicated = [*_twice(images), *_twice_in_force(studies), *_twice_at_pacs(pacs)]
    untrue = [
        *(
            f"Image {_name(one)} is in the ledger and no sender was answered for it."
            for one in images.keys() - sent
        ),
        *_not_at_rest(studies),
        *_spool_and_images(spool, studies),
        *_outbox_and_outputs(spool, studies),
        *_pacs_and_outputs(pacs, studies),
        *(f"The temporary file incoming/{path.name} was left." for path in spool.glob("incoming/*")),
        *(f"The report reports/{path.name} was not taken." for path in spool.glob("reports/*")),
    ]
    verification = ledger.verify()
    if not verification.ok:
        untrue.append(f"The audit chain is broken: {verification.sentence}")
    ends = Counter(i.disposition if i.reason is None else i.reason for one in studies for i in one.images)
    return Judgement(
        lost=tuple(lost), duplicated=tuple(duplicated), untrue=tuple(untrue), ends=dict(sorted(ends.items()))
    )


def _all_studies(ledger: Ledger) -> list[StudyRecord]:
    records = (ledger.study(one.study_instance_uid) for one in ledger.studies(limit=1_000_000))
    return [record for record in records if record is not None]


def _unaccounted(sent: Iterable[Sent], images: Counter[Sent]) -> Iterator[str]:
    for one in sent:
        if not images[one]:
            yield f"Image {_name(one)} was answered with 0x0000 and is not in the ledger."


def _rotten(sent: Iterable[Sent], spool: Path) -> Iterator[str]:
    for one in sent:
        path = spool / "studies" / one.study_instance_uid / f"{one.sop_instance_uid}_{one.sha256}.dcm"
        if not path.is_file():
            yield f"Image {_name(one)} was answered with 0x0000 and is not in the spool."
            continue
        with path.open("rb") as file:
            file.seek(HEAD_BYTES)
            if hashlib.file_digest(file, "sha256").hexdigest() != one.sha256:
                yield f"Image {_name(one)} is not in the spool as it was sent."


def _unreported(studies: Iterable[StudyRecord]) -> Iterator[str]:
    """A score that nobody gets is lost: the PACS has a report and a heatmap of each that is in force."""
    for study in studies:
        scored = any(image.disposition is Disposition.SCORED for image in study.images)
        if not scored or study.conflict_at is not None or any(one.recalled_at for one in study.results):
            continue
        in_force = [one for one in study.results if one.superseded_at is None]
        proven = {
            output.role
            for result in in_force
            for output in result.outputs
            if any(delivery.state in PROVEN for delivery in output.deliveries)
        }
        if not in_force or not {Role.SR, Role.SC} <= proven:
            yield f"Study {study.study_instance_uid} was scored, and no report of it is proven."


def _twice(images: Counter[Sent]) -> Iterator[str]:
    for one, count in images.items():
        if count > 1:
            yield f"Image {_name(one)} is in the ledger {count} times."


def _twice_in_force(studies: Iterable[StudyRecord]) -> Iterator[str]:
    for one in studies:
        in_force = sum(result.superseded_at is None for result in one.results)
        if in_force > 1:
            yield f"Study {one.study_instance_uid} has {in_force} results in force."


def _twice_at_pacs(pacs: Iterable[AtPacs]) -> Iterator[str]:
    series: dict[tuple[str, str, str], set[str]] = {}
    reports: dict[tuple[str, int], set[str]] = {}
    for one in pacs:
        series.setdefault((one.study_instance_uid, one.device_uid, one.kind), set()).add(
            one.series_instance_uid
        )
        if one.kind == "SR":
            reports.setdefault((one.study_instance_uid, one.generation), set()).add(one.sop_instance_uid)
    for (study, _, kind), found in series.items():
        if len(found) > 1:
            yield f"Study {study} has {len(found)} {kind} series of one model at the PACS."
    for (study, generation), found in reports.items():
        if len(found) > 1:
            yield f"Study {study} has {len(found)} SRs of generation {generation} at the PACS."


def _not_at_rest(studies: Iterable[StudyRecord]) -> Iterator[str]:
    for study in studies:
        uid = study.study_instance_uid
        yield from (f"Image {what} of study {uid}." for what in _images_without_end(study))
        for job in study.jobs:
            if job.state in (JobState.READY, JobState.CLAIMED):
                yield f"Generation {job.generation} of study {uid} is still {job.state}."
        for result in study.results:
            # What is in force has been sent; only what was overtaken or withdrawn may have been held back.
            rests = PROVEN if result.superseded_at is None else (*PROVEN, DeliveryState.CANCELLED)
            for output in result.outputs:
                for delivery in output.deliveries:
                    if delivery.state not in rests:
                        yield f"Output {output.sop_instance_uid} of study {uid} is still {delivery.state}."


def _images_without_end(study: StudyRecord) -> Iterator[str]:
    for image in study.images:
        if image.disposition is Disposition.PENDING:
            yield f"{image.sop_instance_uid} is still pending"
        elif image.disposition is not Disposition.SCORED and image.reason is None:
            yield f"{image.sop_instance_uid} ended without a reason"


def _spool_and_images(spool: Path, studies: Iterable[StudyRecord]) -> Iterator[str]:
    rows = {image.path for one in studies for image in one.images}
    files = {str(path.relative_to(spool)) for path in spool.glob("studies/*/*")}
    yield from (f"An image row has no file: {path}." for path in sorted(rows - files))
    yield from (f"A spooled file has no image row: {path}." for path in sorted(files - rows))


def _outbox_and_outputs(spool: Path, studies: Iterable[StudyRecord]) -> Iterator[str]:
    outputs = [output for one in studies for result in one.results for output in result.outputs]
    rows = {output.path: output.sha256 for output in outputs if output.dropped_at is None}
    files = {str(path.relative_to(spool)) for path in spool.glob("outbox/*/*")}
    yield from (f"An output row has no file: {path}." for path in sorted(rows.keys() - files))
    yield from (f"A file of the outbox has no output row: {path}." for path in sorted(files - rows.keys()))
    for path in sorted(files & rows.keys()):
        if hashlib.sha256((spool / path).read_bytes()).hexdigest() != rows[path]:
            yield f"A file of the outbox is not as it was recorded: {path}."


def _pacs_and_outputs(pacs: Iterable[AtPacs], studies: Sequence[StudyRecord]) -> Iterator[str]:
    outputs = {o.sop_instance_uid: o for one in studies for result in one.results for o in result.outputs}
    held = {one.sop_instance_uid: one for one in pacs}
    for uid, one in held.items():
        if uid not in outputs:
            yield f"The PACS holds {one.kind} {uid}, which the ledger never recorded."
        elif one.sha256 != outputs[uid].sha256:
            yield f"The PACS holds other bytes of {one.kind} {uid} than the ledger recorded."
    for uid, output in outputs.items():
        if uid not in held and any(delivery.state in PROVEN for delivery in output.deliveries):
            yield f"Output {uid} is proven in the ledger and not at the PACS."


def _name(one: Sent) -> str:
    return f"{one.sop_instance_uid} of study {one.study_instance_uid}"


def _data_set(part10: bytes) -> bytes:
    return part10[_GROUP_END + int.from_bytes(part10[_GROUP_END - 4 : _GROUP_END], "little") :]


def _our_head(header: Dataset) -> bytes:
    """What our outputs begin with: an archive keeps the data set and writes a file meta of its own.

    The version is that of whoever made it: where versions change under load there are two.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(uids.EXPLICIT_VR_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID(uids.IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = f"{uids.IMPLEMENTATION_VERSION}_{header.SoftwareVersions}"[:16]
    file = DicomBytesIO()
    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta)
    return file.getvalue()
