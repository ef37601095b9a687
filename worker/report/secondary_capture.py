"""The heatmap as a secondary capture: plain RGB, which every PACS can show."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset

from dicom_node.uids import SECONDARY_CAPTURE
from worker import explain
from worker.findings import ImageScore, Output, Role, StudyFinding
from worker.report import codes
from worker.report.envelope import as_ascii, coded, envelope, local_time, seal
from worker.report.identity import SC_SERIES_DESCRIPTION
from worker.settings import ReportSection

_TAKEN_FROM_FILM = (
    "BodyPartExamined",
    "Laterality",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)

_NUMBERS_A_GENERATION = 1000
"""InstanceNumbers set apart for the heatmaps of one generation, so that viewers show the newest last."""


def encode_sc(finding: StudyFinding, score: ImageScore, settings: ReportSection) -> Output:
    """Make the heatmap of one analysed film (PS3.3 A.8.1).

    Window, rescale and calibration of the film are left out: they would be wrong for this page, and a
    window turns RGB black in some viewers.
    """
    film = score.reading
    capture = envelope(
        finding,
        film.source,
        settings,
        role=Role.SC,
        sop_class_uid=SECONDARY_CAPTURE,
        part=film.sop_instance_uid,
    )
    capture.Modality = settings.secondary_capture_modality
    capture.SeriesNumber = settings.series_number + 1
    capture.InstanceNumber = _NUMBERS_A_GENERATION * finding.generation + _film_number(finding, score)
    capture.SeriesDescription = SC_SERIES_DESCRIPTION
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    capture.PatientOrientation = ""
    capture.BurnedInAnnotation = "YES"
    capture.RecognizableVisualFeatures = "NO"
    capture.SourceImageSequence = [_source(film.sop_class_uid, film.sop_instance_uid)]
    capture.DerivationDescription = as_ascii(
        f"{codes.RESEARCH_ONLY}. Class activation map of {finding.model.name} {finding.model.version} "
        f"(SHA-256 {finding.model.sha256[:16]}) after {finding.model.recipe}, beside the film"
    )
    _put_pixels(capture, page_of(finding, score, settings.time_zone))
    return seal(capture, film.source, role=Role.SC, also=_TAKEN_FROM_FILM)


def page_of(finding: StudyFinding, score: ImageScore, hospital: ZoneInfo | None = None) -> explain.Page:
    """Draw the page of one analysed film, of `score.reading.film` and numbers alone.

    `hospital` is the time zone of a film that states none; None: this machine's.
    """
    film, decision = score.reading.film, finding.decision
    if film is None or decision is None:
        raise ValueError("only an analysed film has a page")
    return explain.overlay_page(
        film_HW=film.display_HW,
        cam_hw=score.cam_hw,
        logit=score.logit,
        probability=score.probability,
        model=finding.model,
        film_number=_film_number(finding, score),
        films=len(finding.scores),
        study=decision,
        generation=finding.generation,
        analysed_at=local_time(finding.analysed_at, score.reading.source, hospital),
    )


def _film_number(finding: StudyFinding, score: ImageScore) -> int:
    """From 1, the decisive film first."""
    films = [other.reading.sop_instance_uid for other in finding.scores]
    return films.index(score.reading.sop_instance_uid) + 1


def _source(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    # The page shows the film twice and smaller: its pixels are not where the film's were.
    item.SpatialLocationsPreserved = "NO"
    item.PurposeOfReferenceCodeSequence = [coded(codes.PROCESSED_SOURCE)]
    return item


def _put_pixels(capture: Dataset, page_HW3: explain.Page) -> None:
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = page_HW3.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    capture.PixelData = page_HW3.tobytes()
    capture["PixelData"].VR = "OB"
