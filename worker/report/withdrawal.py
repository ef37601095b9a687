"""What is said about results of a recalled model: a rejection note, or a report that withdraws them.

The rejection note is a Key Object Selection (PS3.3 A.35.4, TID 2010) as IHE Imaging Object Change
Management has it: an archive that takes it hides what it names. Any other destination gets an SR that says
the same to people, and names the report before it as its predecessor (PS3.3 C.17.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from highdicom.sr import (
    CodeContentItem,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.uids import COMPREHENSIVE_3D_SR, KEY_OBJECT_SELECTION
from worker.findings import ModelIdentity, Output, Role, StudyFinding
from worker.report import codes
from worker.report.envelope import as_ascii, envelope, seal
from worker.report.evidence import Cited, evidence
from worker.report.structured_report import comment, observer
from worker.settings import ReportSection

REJECTION_SERIES = "AI CXR results rejected - RESEARCH ONLY"
WITHDRAWAL_SERIES = "AI CXR report WITHDRAWN - RESEARCH ONLY"

_CONTAINS = RelationshipTypeValues.CONTAINS


class Why(StrEnum):
    """Why results are rejected: the two titles that fit (CID 7010)."""

    QUALITY = "quality"
    SAFETY = "safety"


_TITLES = {Why.QUALITY: codes.REJECTED_FOR_QUALITY, Why.SAFETY: codes.REJECTED_FOR_SAFETY}


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A result that is withdrawn, and the objects of it that may be somewhere."""

    study_instance_uid: str
    generation: int
    input_set_hash: str
    model: ModelIdentity
    withdrawn_at: datetime
    objects: Sequence[Cited]


def encode_rejection(withdrawn: Withdrawn, source: bytes, settings: ReportSection, why: Why) -> Output:
    """Make the rejection note of one result.

    Args:
        withdrawn: what is rejected; at least one object.
        source: attributes of a film of the study, as `identity.extract` took them.
        settings: names that the site chose.
        why: which title.
    """
    note = _document(withdrawn, source, settings, role=Role.REJECTION, sop_class_uid=KEY_OBJECT_SELECTION)
    note.Modality = "KO"
    note.SeriesNumber = settings.series_number + 2
    note.SeriesDescription = REJECTION_SERIES
    root = ContainerContentItem(name=_TITLES[why], template_id="2010")
    root.ContentSequence = _head(withdrawn.model, settings)
    told = TextContentItem(
        name=codes.KEY_OBJECT_DESCRIPTION, value=_sentence(withdrawn), relationship_type=_CONTAINS
    )
    root.ContentSequence.append(told)
    root.ContentSequence.extend(_reference(codes.SOURCE_OF_MEASUREMENT, one) for one in withdrawn.objects)
    for item in root.ContentSequence[-len(withdrawn.objects) :]:
        del item.ConceptNameCodeSequence  # references of TID 2010 bear no name
    note.update(root)
    return seal(note, source, role=Role.REJECTION)


def encode_withdrawal(withdrawn: Withdrawn, source: bytes, settings: ReportSection) -> Output:
    """Make the report that withdraws one result, for a destination that takes no rejection notes.

    Args:
        withdrawn: what is withdrawn; at least one object.
        source: attributes of a film of the study, as `identity.extract` took them.
        settings: names that the site chose.
    """
    report = _document(withdrawn, source, settings, role=Role.WITHDRAWAL, sop_class_uid=COMPREHENSIVE_3D_SR)
    report.Modality = "SR"
    report.SeriesNumber = settings.series_number + 2
    report.SeriesDescription = WITHDRAWAL_SERIES
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.PreliminaryFlag, report.ContentQualification = "FINAL", "RESEARCH"
    report.PerformedProcedureCodeSequence = []
    before = [one for one in withdrawn.objects if one.sop_class_uid == COMPREHENSIVE_3D_SR]
    if before:
        report.PredecessorDocumentsSequence = [evidence(withdrawn.study_instance_uid, before)]
    root = ContainerContentItem(name=codes.REPORT_TITLE, template_id="1500")
    root.ContentSequence = _head(withdrawn.model, settings)
    root.ContentSequence.append(
        CodeContentItem(
            name=codes.PROCEDURE_REPORTED,
            value=codes.PROCEDURE,
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    evaluations = ContainerContentItem(name=codes.QUALITATIVE_EVALUATIONS, relationship_type=_CONTAINS)
    told = comment(f"WITHDRAWN: {_sentence(withdrawn)}")
    told.ContentSequence = ContentSequence(
        [
            _reference(codes.SOURCE_OF_MEASUREMENT, one, RelationshipTypeValues.INFERRED_FROM)
            for one in withdrawn.objects
        ]
    )
    evaluations.ContentSequence = ContentSequence([told, comment(f"{codes.RESEARCH_ONLY}.")])
    root.ContentSequence.append(evaluations)
    report.update(root)
    return seal(report, source, role=Role.WITHDRAWAL)


def _document(
    withdrawn: Withdrawn, source: bytes, settings: ReportSection, *, role: Role, sop_class_uid: str
) -> Dataset:
    nothing = StudyFinding(
        study_instance_uid=withdrawn.study_instance_uid,
        generation=withdrawn.generation,
        input_set_hash=withdrawn.input_set_hash,
        analysed_at=withdrawn.withdrawn_at,
        model=withdrawn.model,
        scores=(),
        set_aside=(),
        quarantined=(),
    )
    document = envelope(nothing, source, settings, role=role, sop_class_uid=sop_class_uid)
    document.ReferencedPerformedProcedureStepSequence = []
    document.CurrentRequestedProcedureEvidenceSequence = [
        evidence(withdrawn.study_instance_uid, withdrawn.objects)
    ]
    return document


def _head(model: ModelIdentity, settings: ReportSection) -> ContentSequence:
    head = ContentSequence()
    head.extend(LanguageOfContentItemAndDescendants(codes.ENGLISH))
    head.extend(observer(model, settings.manufacturer))
    return head


def _sentence(withdrawn: Withdrawn) -> str:
    model = withdrawn.model
    return as_ascii(
        f"These results are withdrawn, because the model that made them was recalled: {model.name} "
        f"{model.version}, SHA-256 {model.sha256}. Do not use them."
    )


def _reference(name: Code, one: Cited, relationship: RelationshipTypeValues = _CONTAINS) -> ContentItem:
    kind = CompositeContentItem if one.sop_class_uid == COMPREHENSIVE_3D_SR else ImageContentItem
    return kind(
        name=name,
        referenced_sop_class_uid=one.sop_class_uid,
        referenced_sop_instance_uid=one.sop_instance_uid,
        relationship_type=relationship,
    )
