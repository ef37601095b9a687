from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.uids import IMPLEMENTATION_CLASS
from worker.report.secondary_capture import encode_sc, page_of
from worker.settings import ReportSection

SETTINGS = ReportSection()


@pytest.fixture
def finding(read, find):
    return find([(read(), 0.9)])


@pytest.fixture
def capture(finding):
    return dcmread(BytesIO(encode_sc(finding, finding.scores[0], SETTINGS).content))


def test_pixels_survive_the_file(finding, capture):
    """The page that is drawn is the page that is read back."""
    assert np.array_equal(capture.pixel_array, page_of(finding, finding.scores[0]))


def test_same_finding_gives_same_bytes(finding):
    """A heatmap that is made twice is the same object, byte for byte."""
    score = finding.scores[0]
    assert encode_sc(finding, score, SETTINGS) == encode_sc(finding, score, SETTINGS)


def test_attributes_tell_what_it_is(capture):
    """The capture is marked as a derived, annotated secondary capture that can be filtered by name."""
    expected = {
        "ConversionType": "WSD",
        "Modality": "OT",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BurnedInAnnotation": "YES",
        "RecognizableVisualFeatures": "NO",
        "SeriesDescription": "AI CXR heatmap - RESEARCH ONLY",
        "SeriesNumber": 9002,
    }
    assert {keyword: capture.get(keyword) for keyword in expected} == expected


def test_film_is_its_source(finding, capture):
    """The capture refers to the film that it shows."""
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == finding.scores[0].reading.sop_instance_uid
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


@pytest.mark.parametrize(
    "keyword",
    ["WindowCenter", "RescaleSlope", "PixelSpacing", "KVP", "SeriesDate", "StationName", "ViewPosition"],
)
def test_attributes_of_the_acquisition_are_left_out(read, find, ordinary, keyword):
    """What was true of the exposure or of the film's grey values is not said of the page."""
    values = {"WindowCenter": b"2048", "RescaleSlope": b"1", "PixelSpacing": b"0.1\\0.1", "KVP": b"120"}
    texts = {"SeriesDate": b"20260102", "StationName": b"ROOM1", "ViewPosition": b"PA"}
    finding = find([(read(ordinary | values | texts), 0.9)])
    assert keyword not in dcmread(BytesIO(encode_sc(finding, finding.scores[0], SETTINGS).content))


def test_lossy_history_is_passed_on(read, find, ordinary):
    """A film that was compressed with loss gives a page that says so."""
    lossy = {"LossyImageCompression": b"01", "LossyImageCompressionRatio": b"10"}
    finding = find([(read(ordinary | lossy), 0.9)])
    capture = dcmread(BytesIO(encode_sc(finding, finding.scores[0], SETTINGS).content))
    assert (capture.LossyImageCompression, capture.LossyImageCompressionRatio) == ("01", 10)


def test_films_of_a_study_share_a_series(read, find, ordinary):
    """Two films give two objects in one series, with numbers of their own."""
    second = read(ordinary | {"SOPInstanceUID": b"1.2.826.0.1.3680043.8.498.1.1.2"})
    finding = find([(read(), 0.9), (second, 0.5)])
    first, other = (encode_sc(finding, score, SETTINGS) for score in finding.scores)
    assert first.series_instance_uid == other.series_instance_uid
    assert first.sop_instance_uid != other.sop_instance_uid
    assert [dcmread(BytesIO(one.content)).InstanceNumber for one in (first, other)] == [1001, 1002]


def test_file_names_the_implementation_that_speaks_on_the_wire(capture):
    """File meta and associations give one implementation class UID."""
    assert capture.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS


def test_no_identifier_reaches_the_pixels(read, find, ordinary):
    """Two patients with the same film and score have the same page."""
    pages = [
        page_of(finding, finding.scores[0])
        for name in (b"Phantom^Any", b"Another^Name")
        for finding in (
            find([(read(ordinary | {"PatientName": name, "PatientID": name, "AccessionNumber": name}), 0.9)]),
        )
    ]
    assert np.array_equal(*pages)
