import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.errors import Reason
from worker.eligibility import judge
from worker.findings import Verdict
from worker.report.identity import INSTANCE_CREATOR_UID, SC_SERIES_DESCRIPTION
from worker.settings import EligibilitySection

SETTINGS = EligibilitySection()


def header(**changes) -> Dataset:
    """A frontal chest film of an adult, with changes; None removes an attribute."""
    ds = Dataset()
    values = {
        "SOPClassUID": uids.COMPUTED_RADIOGRAPHY,
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientAge": "060Y",
        "Rows": 2000,
        "Columns": 2000,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    } | changes
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def code(meaning) -> list[Dataset]:
    item = Dataset()
    item.CodeMeaning = meaning
    return [item]


def verdict(**changes):
    found = judge(header(**changes), SETTINGS)
    return found.reason or found.verdict


def test_a_frontal_chest_of_an_adult_is_eligible():
    """A complete header of the right kind leaves nothing open."""
    found = judge(header(), SETTINGS)
    assert (found.verdict, found.reason, found.open_questions) == (Verdict.ELIGIBLE, None, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SOPClassUID": uids.CT_IMAGE, "Modality": "CT"}, Reason.SOP_CLASS),
        ({"SOPClassUID": uids.DIGITAL_XRAY_FOR_PROCESSING, "Modality": "DX"}, Reason.SOP_CLASS),
        ({"SOPClassUID": uids.SECONDARY_CAPTURE, "Modality": "OT"}, Reason.SOP_CLASS),
        ({"SOPClassUID": None}, Reason.SOP_CLASS),
        ({"PresentationIntentType": "FOR PROCESSING"}, Reason.SOP_CLASS),
        ({"Modality": "MG"}, Reason.MODALITY),
        ({"Modality": None}, Reason.MODALITY),
        ({"InstanceCreatorUID": INSTANCE_CREATOR_UID}, Reason.OWN_OUTPUT),
        (
            {"SOPClassUID": uids.SECONDARY_CAPTURE, "SeriesDescription": SC_SERIES_DESCRIPTION},
            Reason.OWN_OUTPUT,
        ),
        ({"BodyPartExamined": "ABDOMEN"}, Reason.BODY_PART),
        ({"BodyPartExamined": "HAND"}, Reason.BODY_PART),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": code("Abdomen")}, Reason.BODY_PART),
        ({"BodyPartExamined": None, "StudyDescription": "Knee, 2 views"}, Reason.BODY_PART),
        ({"ViewPosition": "LL"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": "RL"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": "LATERAL"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": "LAO"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": "LLD"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": None, "ViewCodeSequence": code("left lateral")}, Reason.NOT_FRONTAL),
        ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, Reason.NOT_FRONTAL),
        ({"ViewPosition": None, "PatientOrientation": ["P", "F"]}, Reason.NOT_FRONTAL),
        ({"ViewPosition": None, "SeriesDescription": "Thorax lat."}, Reason.NOT_FRONTAL),
        ({"BodyPartExamined": "BECKEN", "StudyDescription": "Thorax und Becken"}, Reason.BODY_PART),
        ({"BodyPartExamined": "LSPINE", "SeriesDescription": "CHEST"}, Reason.BODY_PART),
        ({"ViewPosition": None, "SeriesDescription": "Thorax seitlich"}, Reason.NOT_FRONTAL),
        ({"ViewPosition": "LLAT"}, Reason.NOT_FRONTAL),
        ({"ImageType": ["DERIVED", "SECONDARY", "", "BONE"]}, Reason.COMPANION),
        ({"SeriesDescription": "Chest PA SoftTissue"}, Reason.COMPANION),
        ({"AcquisitionDeviceProcessingDescription": "Bone suppression"}, Reason.COMPANION),
        ({"DerivationDescription": "Temporal subtraction"}, Reason.COMPANION),
        ({"PatientAge": None, "PatientBirthDate": "20010302", "StudyDate": "20190301"}, Reason.AGE),
        ({"PatientAge": "017Y"}, Reason.AGE),
        ({"PatientAge": "011M"}, Reason.AGE),
        ({"PatientAge": "003D"}, Reason.AGE),
        ({"PatientAge": None, "PatientBirthDate": "20150601", "StudyDate": "20240101"}, Reason.AGE),
        ({"QualityControlImage": "YES"}, Reason.QUALITY_CONTROL),
        ({"NumberOfFrames": 2**31 - 1}, Reason.MULTIFRAME),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, Reason.COLOUR),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.COLOUR),
        ({"Rows": 128}, Reason.TOO_SMALL),
    ],
)
def test_what_is_not_analysed_has_its_reason(changes, reason):
    """Each exclusion is by policy, with the reason that applies."""
    found = judge(header(**changes), SETTINGS)
    assert (found.verdict, found.reason) == (Verdict.INELIGIBLE, reason)


@pytest.mark.parametrize(
    "changes",
    [
        {"BodyPartExamined": "PORT CHEST"},
        {"BodyPartExamined": "THORAX"},
        {"BodyPartExamined": "CHEST_PA"},
        {"BodyPartExamined": "UNKNOWN", "AnatomicRegionSequence": code("Thoracic structure")},
        {"BodyPartExamined": None, "StudyDescription": "XR CHEST PORTABLE"},
        {"BodyPartExamined": None, "SeriesDescription": "Tórax PA"},
        {"ViewPosition": "AP"},
        {"ViewPosition": None, "ViewCodeSequence": code("postero-anterior")},
        {"ViewPosition": None, "PatientOrientation": ["L", "F"]},
        {"ViewPosition": None, "PatientOrientation": ["R", "F"]},
        {"ViewPosition": None, "PatientOrientation": ["F", "L"]},
        {"ViewPosition": "", "SeriesDescription": "pa"},
        {"PatientAge": None, "PatientBirthDate": "1960.06.01", "StudyDate": "20240101"},
        {"BodyPartExamined": "CHESTPA"},
        {"BodyPartExamined": "TORACE"},
        {"BodyPartExamined": "RAUM 3", "SeriesDescription": "Thorax a.p. liegend"},
        {"BodyPartExamined": "MISC", "StudyDescription": "CHEST 2 VIEWS"},
        {"ViewPosition": None, "SeriesDescription": "Thorax p.a."},
        {"PatientAge": "000Y", "PatientBirthDate": "19500101", "StudyDate": "20240101"},
        {"PatientAge": None, "PatientBirthDate": "20010301", "StudyDate": "20190301"},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"PatientAge": "018Y"},
        {"SOPClassUID": uids.DIGITAL_XRAY_FOR_PRESENTATION, "Modality": "DX"},
    ],
)
def test_the_ways_in_which_headers_say_it(changes):
    """Body part, view and age are found in each of the places where headers have them."""
    assert verdict(**changes) == Verdict.ELIGIBLE


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({"BodyPartExamined": None}, "BodyPartExamined"),
        ({"ViewPosition": None}, "ViewPosition"),
        ({"ViewPosition": None, "SeriesDescription": "CHEST PA AND LAT"}, "ViewPosition"),
        ({"PatientAge": None}, "PatientAge"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "ImageType"),
        ({"PatientAge": "OLD"}, "PatientAge"),
        ({"PatientAge": "000Y"}, "PatientAge"),
        ({"PatientAge": "999Y"}, "PatientAge"),
        ({"PatientAge": None, "PatientBirthDate": "19600601", "StudyDate": "29990101"}, "PatientAge"),
        ({"PatientAge": None, "PatientBirthDate": "19600601", "StudyDate": "18000101"}, "PatientAge"),
        ({"PatientAge": None, "PatientBirthDate": "19601399", "StudyDate": "20240101"}, "PatientAge"),
    ],
)
def test_what_is_open_is_named(changes, question):
    """What the header leaves open makes it indeterminate, and is scored unless the site says otherwise."""
    found = judge(header(**changes), SETTINGS)
    assert (found.verdict, found.reason, found.open_questions) == (Verdict.INDETERMINATE, None, (question,))
    skipped = judge(header(**changes), EligibilitySection(indeterminate="skip"))
    assert (skipped.verdict, skipped.reason) == (Verdict.INDETERMINATE, Reason.INDETERMINATE)


def test_secondary_captures_where_the_site_wants_them():
    """A digitised film in a secondary capture is analysed only by the site's choice."""
    settings = EligibilitySection(secondary_capture=True)
    film = header(SOPClassUID=uids.SECONDARY_CAPTURE, Modality="OT")
    assert judge(film, settings).verdict is Verdict.ELIGIBLE


def test_every_age_where_the_site_wants_them():
    """With a minimum age of 0 neither a child nor an unknown age is set aside."""
    settings = EligibilitySection(minimum_age_years=0)
    assert judge(header(PatientAge="003Y"), settings).verdict is Verdict.ELIGIBLE
    assert judge(header(PatientAge=None), settings).verdict is Verdict.ELIGIBLE


def test_the_real_films_are_analysed(shared_data):
    """The three real DICOM films are eligible, or indeterminate only for their missing age."""
    for path in (shared_data / "dicom").glob("*.dcm"):
        found = judge(dcmread(path, stop_before_pixels=True), SETTINGS)
        assert found.reason is None
        assert set(found.open_questions) <= {"PatientAge"}
