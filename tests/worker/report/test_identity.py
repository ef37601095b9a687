import struct
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import data_element_generator

from dicom_node import uids
from dicom_node.errors import Permanent, Reason
from worker.findings import Output
from worker.report import identity
from worker.report.secondary_capture import encode_sc
from worker.report.structured_report import encode_sr
from worker.settings import ReportSection

SYNTAXES = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_BIG_ENDIAN)


def raw(data_set: bytes) -> dict[int, bytes]:
    """The value bytes of a data set as they stand there, without padding."""
    elements = data_element_generator(BytesIO(data_set), is_implicit_VR=False, is_little_endian=True)
    return {element.tag: element.value.rstrip(b" \0") for element in elements if element.VR != "SQ"}


def expected(value: bytes | None, tag: int) -> bytes | None:
    if value is not None:
        return value.rstrip(b" \0")
    return b"" if tag in identity.REQUIRED else None


def identifiers(values: dict[str, bytes | None]) -> dict[int, bytes | None]:
    """What a result must hold of a film with these values."""
    by_tag = {tag_for_keyword(keyword): value for keyword, value in values.items()}
    return {tag: expected(by_tag.get(tag), tag) for tag in identity.COPIED}


def found(output: Output) -> dict[int, bytes | None]:
    length = int.from_bytes(output.content[140:144], "little")  # of the file meta information (PS3.10 7.1)
    values = raw(output.content[144 + length :])
    return {tag: values.get(tag) for tag in identity.COPIED}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_extract_keeps_every_byte(header, open_header, syntax):
    """Values pass unaltered from any transfer syntax and any character set, declared or not."""
    source = raw(identity.extract(open_header(header, syntax)))
    for keyword, value in header.items():
        tag = tag_for_keyword(keyword)
        assert source.get(tag) == (None if value is None else value.rstrip(b" \0")), keyword


def test_extract_keeps_the_character_set_beside_sequences(open_header, ordinary):
    """The character set passes although pydicom decodes it early in headers that hold a sequence."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    values = {"SpecificCharacterSet": b"\\ISO 2022 IR 87", "RequestAttributesSequence": item}
    source = raw(identity.extract(open_header(ordinary | values)))
    assert source[tag_for_keyword("SpecificCharacterSet")] == b"\\ISO 2022 IR 87"


def test_report_carries_identifiers_byte_for_byte(header, read, find):
    """The SR names the patient and the study with the film's own bytes."""
    finding = find([(read(header), 0.9)])
    assert found(encode_sr(finding, ReportSection(), ())) == identifiers(header)


def test_heatmap_carries_identifiers_byte_for_byte(header, read, find):
    """The secondary capture names the patient and the study with the film's own bytes."""
    finding = find([(read(header), 0.9)])
    assert found(encode_sc(finding, finding.scores[0], ReportSection())) == identifiers(header)


@pytest.mark.parametrize(
    "name", ["cr_chest_mono1_10bit", "cr_chest_pa_mono1_j2k", "dx_chest_pa_j2k_lossless"]
)
def test_real_films_keep_their_identifiers(shared_data, name):
    """Identifiers of real films, some of them invalid, stand in the result as they stand in the film."""
    header = dcmread(shared_data / "dicom" / f"{name}.dcm", stop_before_pixels=True)
    stored = {tag: header.get_item(tag).value for tag in identity.COPIED if tag in header}
    written = DicomBytesIO()
    identity.graft(Dataset(), identity.extract(header), written)
    grafted = raw(written.getvalue())
    texts = {tag: value.rstrip(b" \0") for tag, value in stored.items() if isinstance(value, bytes)}
    assert {tag: grafted[tag] for tag in texts} == texts


def test_value_of_odd_length_is_padded():
    """A source that breaks the rule of even lengths still gives a result that keeps it."""
    odd = struct.pack("<HH2sH", 0x10, 0x20, b"LO", 3) + b"ABC"
    assert identity.extract(identity.cited(odd)) == struct.pack("<HH2sH", 0x10, 0x20, b"LO", 4) + b"ABC "


def test_oversized_value_is_refused(open_header, ordinary):
    """A name longer than any valid one sets the image aside, with no word of it in the sentence."""
    header = open_header(ordinary | {"PatientName": b"Secret" * 10_000})
    with pytest.raises(Permanent) as refusal:
        identity.extract(header)
    assert refusal.value.reason is Reason.UNREADABLE
    assert "Secret" not in str(refusal.value)


def test_sequence_in_place_of_text_is_refused():
    """A PatientID that is a sequence sets the image aside."""
    empty_sequence = struct.pack("<HH2sHI", 0x10, 0x20, b"SQ", 0, 0)
    with pytest.raises(Permanent, match="sequence"):
        identity.extract(identity.cited(empty_sequence))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"IssuerOfPatientID": b"HOSPITAL A"}, {}),
        ({"PatientBirthDate": b""}, {}),
        ({"PatientBirthDate": None}, {}),
        ({"PatientBirthDate": b"1950.01.01"}, {}),
        ({"PatientBirthDate": b"unknown"}, {}),
        ({"PatientID": b" PHANTOM-1"}, {}),
        ({"PatientName": b"PHANTOM^ANY"}, {}),
    ],
)
def test_films_of_one_patient(open_header, ordinary, one, other):
    """What one film leaves out, or writes in another way, is no contradiction, in either order."""
    films = [identity.extract(open_header(ordinary | change)) for change in (one, other)]
    assert identity.same_patient(films)
    assert identity.same_patient(reversed(films))


@pytest.mark.parametrize(
    "change",
    [
        {"PatientID": b"PHANTOM-2"},
        {"PatientID": b""},
        {"IssuerOfPatientID": b"HOSPITAL B"},
        {"PatientBirthDate": b"19500102"},
    ],
)
def test_films_of_two_patients(open_header, ordinary, change):
    """A film that names another id, issuer or birth date contradicts the others, whatever some leave out."""
    first = ordinary | {"IssuerOfPatientID": b"HOSPITAL A"}
    silent = ordinary | {"PatientBirthDate": b""}
    films = [identity.extract(open_header(values)) for values in (first, silent, first | change)]
    assert identity.same_patient(films[:2])
    assert not identity.same_patient(films)


def test_digest_is_equal_for_one_patient(open_header, ordinary):
    """Padding and the name's spelling do not make another patient."""
    one = open_header(ordinary)
    same = open_header(ordinary | {"PatientID": b" PHANTOM-1  ", "PatientName": b"PHANTOM^ANY"})
    assert identity.patient_digest(one) == identity.patient_digest(same)


@pytest.mark.parametrize(
    "change",
    [{"PatientID": b"PHANTOM-2"}, {"IssuerOfPatientID": b"B"}, {"PatientBirthDate": b"19500102"}],
)
def test_digest_differs_between_patients(open_header, ordinary, change):
    """Another id, issuer or birth date is another patient."""
    assert identity.patient_digest(open_header(ordinary)) != identity.patient_digest(
        open_header(ordinary | change)
    )


def test_digest_keeps_fields_apart(open_header, ordinary):
    """What moves from one field to the next is not the same patient."""
    one = open_header(ordinary | {"PatientID": b"AB", "IssuerOfPatientID": b"C"})
    other = open_header(ordinary | {"PatientID": b"A", "IssuerOfPatientID": b"BC"})
    assert identity.patient_digest(one) != identity.patient_digest(other)


def test_own_results_are_known(read, find):
    """Both kinds of result are recognised as ours when they come back."""
    finding = find([(read(), 0.9)])
    heatmap = encode_sc(finding, finding.scores[0], ReportSection())
    report = encode_sr(finding, ReportSection(), (heatmap,))
    assert all(identity.is_own_output(dcmread(BytesIO(output.content))) for output in (heatmap, report))


def test_film_is_not_an_own_result(open_header, ordinary):
    """A film is not taken for one of our results."""
    assert not identity.is_own_output(open_header(ordinary))
