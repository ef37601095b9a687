"""The report: Comprehensive 3D SR after TID 1500, for a scored study and for one that was not analysed.

One measurement group for each analysed film (probability, presence, film, heatmap), and one qualitative
evaluation for the study, which is positive when any of its films is. highdicom builds the content tree;
the document around it is built here, because highdicom refuses headers that real studies have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_node.errors import Reason
from dicom_node.uids import COMPREHENSIVE_3D_SR, derive_uid
from worker.findings import ImageScore, ModelIdentity, Output, Reading, Role, StudyFinding
from worker.report import codes
from worker.report.envelope import PRODUCT, as_ascii, device_uid, envelope, seal
from worker.report.evidence import evidence
from worker.report.identity import SR_SERIES_DESCRIPTION
from worker.settings import ReportSection

_CONTAINS = RelationshipTypeValues.CONTAINS


def encode_sr(finding: StudyFinding, settings: ReportSection, heatmaps: Sequence[Output]) -> Output:
    """Make the report of one generation of a study.

    Args:
        finding: scored, or set aside by policy (at least one image).
        settings: names that the site chose.
        heatmaps: the secondary captures, in the order of `finding.scores`; may be empty.
    """
    source = _images(finding)[0].source
    report = envelope(finding, source, settings, role=Role.SR, sop_class_uid=COMPREHENSIVE_3D_SR)
    report.Modality = "SR"
    report.SeriesNumber = settings.series_number
    report.SeriesDescription = SR_SERIES_DESCRIPTION
    report.CompletionFlag = "PARTIAL" if finding.quarantined else "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.ContentQualification = "RESEARCH"
    report.PerformedProcedureCodeSequence = []
    report.ReferencedPerformedProcedureStepSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = [
        evidence(finding.study_instance_uid, [*_images(finding), *heatmaps])
    ]
    report.update(_content(finding, settings, heatmaps))
    return seal(report, source, role=Role.SR)


def _images(finding: StudyFinding) -> list[Reading]:
    """Scored images, the decisive one first, then those set aside: all that the report cites."""
    aside = [r for r in finding.set_aside if r.eligibility.reason is not Reason.OWN_OUTPUT]
    return [score.reading for score in finding.scores] + aside


def _content(finding: StudyFinding, settings: ReportSection, heatmaps: Sequence[Output]) -> ContentItem:
    root = ContainerContentItem(name=codes.REPORT_TITLE, template_id="1500")
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(LanguageOfContentItemAndDescendants(codes.ENGLISH))
    root.ContentSequence.extend(observer(finding.model, settings.manufacturer))
    root.ContentSequence.append(
        CodeContentItem(
            name=codes.PROCEDURE_REPORTED,
            value=codes.PROCEDURE,
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    if finding.scores:
        groups = ContainerContentItem(name=codes.IMAGING_MEASUREMENTS, relationship_type=_CONTAINS)
        groups.ContentSequence = ContentSequence()
        for number, score in enumerate(finding.scores):
            heatmap = heatmaps[number] if heatmaps else None
            groups.ContentSequence.extend(_group(finding, number, score, heatmap))
        root.ContentSequence.append(groups)
    root.ContentSequence.append(_evaluations(finding))
    return root


@lru_cache(maxsize=8)
def observer(model: ModelIdentity, manufacturer: str) -> ObserverContext:
    """The algorithm as the observer (TID 1004)."""
    return ObserverContext(
        observer_type=codes.DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid(model),
            name=PRODUCT,
            manufacturer_name=as_ascii(manufacturer),
            model_name=as_ascii(model.name),
        ),
    )


def _group(
    finding: StudyFinding, number: int, score: ImageScore, heatmap: Output | None
) -> MeasurementsAndQualitativeEvaluations:
    """One film (TID 1501). Its tracking UID stays the same over generations and models."""
    film = score.reading
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            identifier=f"COVID-19 on film {number + 1}",
            uid=derive_uid("tracking", finding.study_instance_uid, film.sop_instance_uid),
        ),
        finding_type=codes.COVID_19,
        finding_sites=[FindingSite(anatomic_location=codes.LUNG)],
        algorithm_id=_algorithm(finding.model),
        measurements=[
            Measurement(name=codes.PROBABILITY, value=round(score.probability, 6), unit=codes.NO_UNITS)
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(
                name=codes.COVID_19, value=_presence(score.probability >= finding.model.threshold)
            )
        ],
        source_images=[
            SourceImageForMeasurementGroup(
                referenced_sop_class_uid=film.sop_class_uid, referenced_sop_instance_uid=film.sop_instance_uid
            )
        ],
    )
    if heatmap is not None:
        group[0].ContentSequence.append(_explanation(heatmap))
    return group


@lru_cache(maxsize=8)
def _algorithm(model: ModelIdentity) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=as_ascii(model.name),
        version=as_ascii(model.version),
        parameters=[
            as_ascii(parameter)
            for parameter in (
                f"threshold on the probability = {model.threshold:.6g}",
                f"operating point = {model.operating_point}",
                f"preprocessing = {model.recipe}",
                f"engine = {model.engine}, {model.precision}",
                f"model SHA-256 = {model.sha256}",
            )
        ],
    )


def _explanation(heatmap: Output) -> ImageContentItem:
    """The heatmap, as class activation (CID 217)."""
    image = ImageContentItem(
        name=codes.VISUAL_EXPLANATION,
        referenced_sop_class_uid=heatmap.sop_class_uid,
        referenced_sop_instance_uid=heatmap.sop_instance_uid,
        relationship_type=_CONTAINS,
    )
    image.ContentSequence = ContentSequence(
        [
            CodeContentItem(
                name=codes.METHOD,
                value=codes.CLASS_ACTIVATION,
                relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
            )
        ]
    )
    return image


def _evaluations(finding: StudyFinding) -> ContainerContentItem:
    """The study as a whole (TID 1500 row 12): the result or why there is none, then remarks."""
    evaluations = ContainerContentItem(name=codes.QUALITATIVE_EVALUATIONS, relationship_type=_CONTAINS)
    evaluations.ContentSequence = ContentSequence()
    if finding.scores:
        evaluations.ContentSequence.extend(
            QualitativeEvaluation(name=codes.COVID_19, value=_presence(finding.decision == "positive"))
        )
    evaluations.ContentSequence.extend(
        QualitativeEvaluation(name=codes.SUMMARY_OF_ANALYSES, value=_summary(finding))
    )
    evaluations.ContentSequence.append(comment(f"{codes.RESEARCH_ONLY}."))
    evaluations.ContentSequence.extend(_remarks(finding))
    return evaluations


def _presence(positive: bool) -> Code:
    return codes.PRESENT if positive else codes.ABSENT


def _summary(finding: StudyFinding) -> Code:
    if not finding.scores:
        return codes.NOT_ATTEMPTED
    return codes.PARTIALLY_SUCCEEDED if finding.quarantined else codes.SUCCEEDED


def _remarks(finding: StudyFinding) -> Iterator[TextContentItem]:
    for number, score in enumerate(finding.scores):
        if score.reading.eligibility.open_questions:
            missing = ", ".join(score.reading.eligibility.open_questions)
            yield comment(f"Film {number + 1} was analysed although its header leaves open: {missing}.")
    for reading in _images(finding)[len(finding.scores) :]:
        remark = comment(_not_analysed(reading.sop_instance_uid, reading.eligibility.reason))
        remark.ContentSequence = ContentSequence([_reference(reading)])
        yield remark
    for rejected in finding.quarantined:
        yield comment(_not_analysed(rejected.sop_instance_uid, rejected.reason))


def comment(sentence: str) -> TextContentItem:
    """A sentence of ours."""
    return TextContentItem(name=codes.COMMENT, value=as_ascii(sentence), relationship_type=_CONTAINS)


def _not_analysed(sop_instance_uid: str, reason: Reason | None) -> str:
    code = reason.value if reason else "UNKNOWN"
    explanation = codes.EXPLANATIONS.get(reason, codes.NOT_SCORABLE) if reason else codes.NOT_SCORABLE
    return f"Not analysed ({code}): {explanation}. SOP Instance UID {sop_instance_uid}."


def _reference(reading: Reading) -> ContentItem:
    """The object that a remark is about; IMAGE may name images only (PS3.3 C.18.4), which PS3.6 names so."""
    is_image = "Image Storage" in UID(reading.sop_class_uid).name
    kind = ImageContentItem if is_image else CompositeContentItem
    return kind(
        name=codes.SOURCE_OF_MEASUREMENT,
        referenced_sop_class_uid=reading.sop_class_uid,
        referenced_sop_instance_uid=reading.sop_instance_uid,
        relationship_type=RelationshipTypeValues.INFERRED_FROM,
    )
