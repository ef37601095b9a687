from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.errors import Reason
from dicom_node.uids import COMPREHENSIVE_3D_SR
from worker.findings import Rejected
from worker.report.secondary_capture import encode_sc
from worker.report.structured_report import encode_sr
from worker.settings import ReportSection

SETTINGS = ReportSection()


def items(node: Dataset, meaning: str) -> list[Dataset]:
    """Content items with this concept name, in the order of the tree."""
    found = []
    for item in node.get("ContentSequence", ()):
        if item.get("ConceptNameCodeSequence", [Dataset()])[0].get("CodeMeaning") == meaning:
            found.append(item)
        found += items(item, meaning)
    return found


def opened(output) -> Dataset:
    return dcmread(BytesIO(output.content))


@pytest.fixture
def two_films(read, find, ordinary):
    second = read(ordinary | {"SOPInstanceUID": b"1.2.826.0.1.3680043.8.498.1.1.2"})
    return find([(read(), 0.9), (second, 0.1)])


def test_same_finding_gives_same_bytes(two_films):
    """A report that is made twice is the same object, byte for byte."""
    heatmaps = [encode_sc(two_films, score, SETTINGS) for score in two_films.scores]
    assert encode_sr(two_films, SETTINGS, heatmaps) == encode_sr(two_films, SETTINGS, heatmaps)


def test_reports_made_at_once_do_not_mix(read, find):
    """Threads that report different studies at the same time get what each gets alone."""
    findings = [find([(read(), 0.01 * number)], generation=number) for number in range(1, 13)]
    alone = [encode_sr(finding, SETTINGS, ()).sha256 for finding in findings]
    with ThreadPoolExecutor(4) as threads:
        together = [output.sha256 for output in threads.map(lambda f: encode_sr(f, SETTINGS, ()), findings)]
    assert together == alone


def test_each_film_has_its_group(two_films):
    """Every analysed film has its own probability, presence and tracking UID."""
    groups = items(opened(encode_sr(two_films, SETTINGS, ())), "Measurement Group")
    values = [float(items(g, "Probability")[0].MeasuredValueSequence[0].NumericValue) for g in groups]
    presence = [items(g, "COVID-19")[0].ConceptCodeSequence[0].CodeMeaning for g in groups]
    tracking = {items(g, "Tracking Unique Identifier")[0].UID for g in groups}
    assert (values, presence, len(tracking)) == ([0.9, 0.1], ["Present", "Absent"], 2)


def test_study_is_positive_when_a_film_is(two_films):
    """The evaluation of the study is that of its decisive film."""
    (study,) = items(opened(encode_sr(two_films, SETTINGS, ())), "Qualitative Evaluations")
    assert items(study, "COVID-19")[0].ConceptCodeSequence[0].CodeMeaning == "Present"


def test_algorithm_is_identified(two_films, model):
    """Name, version, threshold, operating point, recipe and digest of the model stand in the report."""
    report = opened(encode_sr(two_films, SETTINGS, ()))
    parameters = " ".join(item.TextValue for item in items(report, "Algorithm Parameters"))
    assert all(
        text in parameters
        for text in ("0.4", model.operating_point, model.recipe, model.sha256, model.engine)
    )
    assert items(report, "Algorithm Name")[0].TextValue == model.name
    assert items(report, "Algorithm Version")[0].TextValue == model.version


def test_heatmap_is_the_visual_explanation(two_films):
    """Each group refers to the heatmap of its own film."""
    heatmaps = [encode_sc(two_films, score, SETTINGS) for score in two_films.scores]
    images = items(opened(encode_sr(two_films, SETTINGS, heatmaps)), "Visual explanation")
    referenced = [image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in images]
    assert referenced == [heatmap.sop_instance_uid for heatmap in heatmaps]


def test_evidence_lists_films_and_heatmaps(two_films):
    """Every object that the report refers to is in its evidence."""
    heatmaps = [encode_sc(two_films, score, SETTINGS) for score in two_films.scores]
    report = opened(encode_sr(two_films, SETTINGS, heatmaps))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        reference.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }
    expected = {score.reading.sop_instance_uid for score in two_films.scores}
    assert listed == expected | {heatmap.sop_instance_uid for heatmap in heatmaps}


def test_report_is_preliminary_and_for_research(two_films):
    """Nobody has verified the report, and it says that it is research."""
    report = opened(encode_sr(two_films, SETTINGS, ()))
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.ContentQualification == "RESEARCH"
    assert any("NOT FOR DIAGNOSIS" in item.TextValue for item in items(report, "Comment"))


def test_next_generation_joins_the_series(read, find):
    """A later result is another object in the same series, with the next number."""
    first, second = (
        opened(encode_sr(find([(read(), 0.9)], generation=number), SETTINGS, ())) for number in (1, 2)
    )
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)


def test_device_changes_with_the_threshold(read, find, model):
    """A model with another threshold is another device."""
    finding = find([(read(), 0.9)])
    other = replace(finding, model=replace(model, threshold=0.5))
    devices = {
        opened(encode_sr(each, SETTINGS, ())).ContributingEquipmentSequence[0].DeviceUID
        for each in (finding, other)
    }
    assert len(devices) == 2


def test_not_analysed_study_says_why(read, find):
    """A study that policy set aside gets the reason, and neither a number nor a finding."""
    report = opened(encode_sr(find([], (read(reason=Reason.NOT_FRONTAL),)), SETTINGS, ()))
    assert "NOT_FRONTAL" in " ".join(item.TextValue for item in items(report, "Comment"))
    assert items(report, "Summary of Analyses")[0].ConceptCodeSequence[0].CodeMeaning == "Not Attempted"
    assert not items(report, "Probability")
    assert not items(report, "COVID-19")


@pytest.mark.parametrize(
    ("sop_class_uid", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "IMAGE"),  # CT
        ("1.2.840.10008.5.1.4.1.1.88.67", "COMPOSITE"),  # X-Ray Radiation Dose SR
        ("1.2.840.10008.5.1.4.1.1.11.1", "COMPOSITE"),  # Grayscale Softcopy Presentation State
        ("1.2.840.10008.5.1.4.1.1.104.1", "COMPOSITE"),  # Encapsulated PDF
        ("1.2.826.0.1.3680043.8.498.1", "COMPOSITE"),  # somebody's own
    ],
)
def test_only_an_image_is_cited_as_one(read, find, ordinary, sop_class_uid, kind):
    """A site may take whole studies: what is no image must not stand in an IMAGE item (PS3.3 C.18.4)."""
    other = read(ordinary | {"SOPClassUID": sop_class_uid.encode()}, reason=Reason.SOP_CLASS)
    report = opened(encode_sr(find([], (other,)), SETTINGS, ()))
    cited = [item for remark in items(report, "Comment") for item in remark.get("ContentSequence", ())]
    assert [item.ValueType for item in cited] == [kind]


def test_quarantined_image_makes_the_report_partial(read, find):
    """A report that lacks an image says so and names the reason."""
    lost = Rejected(sop_instance_uid="1.2.3", reason=Reason.PIXELS_UNDECODABLE, sentence="Not shown.")
    report = opened(encode_sr(find([(read(), 0.9)], quarantined=(lost,)), SETTINGS, ()))
    assert report.CompletionFlag == "PARTIAL"
    assert "PIXELS_UNDECODABLE" in " ".join(item.TextValue for item in items(report, "Comment"))


def test_open_questions_are_told(read, find):
    """A film analysed although its header is silent is reported with what is missing."""
    report = opened(encode_sr(find([(read(open_questions=("ViewPosition",)), 0.9)]), SETTINGS, ()))
    assert "ViewPosition" in " ".join(item.TextValue for item in items(report, "Comment"))


def test_own_output_is_not_mentioned(read, find, ordinary):
    """A result of ours among the images is no part of the report."""
    own = read(
        ordinary | {"SOPInstanceUID": b"1.2.9", "SOPClassUID": COMPREHENSIVE_3D_SR.encode()},
        reason=Reason.OWN_OUTPUT,
    )
    finding = find([(read(), 0.9)], (own,))
    assert b"1.2.9\0" not in encode_sr(finding, SETTINGS, ()).content


def test_times_are_those_of_the_film(read, find, ordinary):
    """The content time is in the time zone that the film states and the report copies."""
    film = read(ordinary | {"TimezoneOffsetFromUTC": b"+0530"})
    report = opened(encode_sr(find([(film, 0.9)]), SETTINGS, ()))
    assert (report.ContentDate, report.ContentTime) == ("20260102", "083405.600700")


def test_times_are_those_of_the_hospital_where_the_film_is_silent(read, find, ordinary):
    """A container runs in UTC: the day of a result is that of the site, not of the machine."""
    film = read({k: v for k, v in ordinary.items() if k != "TimezoneOffsetFromUTC"})
    settings = ReportSection.model_validate({"time_zone": "America/New_York"})
    report = opened(encode_sr(find([(film, 0.9)]), settings, ()))
    assert (report.ContentDate, report.ContentTime) == ("20260101", "220405.600700")
    assert (report.InstanceCreationDate, report.InstanceCreationTime[:2]) == ("20260101", "22")


def test_manufacturer_outside_ascii_is_harmless(read, find):
    """Our own text never depends on the character set that the film declares."""
    report = encode_sr(find([(read(), 0.9)]), ReportSection(manufacturer="Röntgen"), ())
    assert opened(report).Manufacturer == "R?ntgen"
