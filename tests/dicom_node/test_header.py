from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node import uids
from dicom_node.header import Identity, UnreadableDataSet, read_identity
from tests.dicom_node.build import encoded, film


def identify(content: bytes, syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN) -> Identity:
    return read_identity(lambda start, count: content[start : start + count], len(content), syntax)


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"UI", b"LO", b"PN"):
        return head + struct.pack("<H", length) + value
    return head + struct.pack("<HL", 0, length) + value


UIDS = (
    (0x0008_0016, b"1.2.840.10008.5.1.4.1.1.1\0"),
    (0x0008_0018, b"1.2.3.4\0"),
    (0x0020_000D, b"1.2.3\0"),
    (0x0020_000E, b"1.2.3.5\0"),
)


def with_elements(*extra: bytes) -> bytes:
    """A minimal data set with elements between group 0008 and group 0020."""
    own = [element(tag, b"UI", value) for tag, value in UIDS]
    return b"".join([*own[:2], *extra, *own[2:]])


@pytest.mark.parametrize("syntax", uids.TRANSFER_SYNTAXES)
def test_names_the_object_in_every_syntax(syntax: str) -> None:
    """The four UIDs are those that pydicom wrote."""
    content = film(transfer_syntax=syntax)
    assert identify(encoded(content), syntax) == Identity(
        sop_class_uid=content.SOPClassUID,
        sop_instance_uid=content.SOPInstanceUID,
        study_instance_uid=content.StudyInstanceUID,
        series_instance_uid=content.SeriesInstanceUID,
    )


@pytest.mark.parametrize("syntax", uids.TRANSFER_SYNTAXES[:3])
@pytest.mark.parametrize("undefined", [False, True])
def test_passes_nested_sequences(syntax: str, undefined: bool) -> None:
    """Sequences of either length form before the study are stepped over."""
    inner, outer = Dataset(), Dataset()
    inner.StudyInstanceUID = "1.2.3.666"
    outer.ReferencedSeriesSequence = Sequence([inner, inner])
    content = film(transfer_syntax=syntax, ReferencedStudySequence=Sequence([outer, outer]))
    for dataset in (content, outer):
        for one in dataset:
            if one.VR == "SQ":
                one.is_undefined_length = undefined
                for item in one.value:
                    item.is_undefined_length_sequence_item = undefined
    assert identify(encoded(content), syntax).study_instance_uid == content.StudyInstanceUID


def test_reads_no_further_than_the_series() -> None:
    """What follows (0020,000E) is not looked at, however broken it is."""
    assert identify(with_elements() + b"\xff" * 100).series_instance_uid == "1.2.3.5"


def test_passes_a_long_value() -> None:
    """A private value of megabytes before the study does no harm."""
    content = with_elements(element(0x0009_1001, b"OB", bytes(5_000_000)))
    assert identify(content).study_instance_uid == "1.2.3"


def test_passes_an_unknown_representation() -> None:
    """A VR that no edition knows is taken to have a length of 32 bits."""
    assert identify(with_elements(element(0x0009_1001, b"ZZ", b"abcd"))).study_instance_uid == "1.2.3"


def test_passes_unknown_content_of_undefined_length() -> None:
    """UN of undefined length is Implicit VR inside, in an explicit data set."""
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFF_FFFF)
    inner = struct.pack("<HHL", 0x0009, 0x1002, 4) + b"abcd"
    ends = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    content = with_elements(element(0x0009_1001, b"UN", item + inner + ends, 0xFFFF_FFFF))
    assert identify(content).study_instance_uid == "1.2.3"


NESTED = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFF_FFFF) + struct.pack(
    "<HHL", 0xFFFE, 0xE000, 0xFFFF_FFFF
)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="text"),
        pytest.param(bytes(128) + b"DICM" + bytes(400), id="a whole Part 10 file"),
        pytest.param(with_elements()[:-40], id="no series"),
        pytest.param(with_elements(NESTED * 3000), id="3000 sequences deep"),
        pytest.param(with_elements(element(0x0009_1001, b"OB", b"", 0xFFFF_FFF0)), id="huge length"),
        pytest.param(with_elements(element(0x0009_1001, b"SQ", b"", 0xFFFF_FFFF)), id="no delimiter"),
        pytest.param(with_elements(element(0x0009_1001, b"\0\1", b"ab")), id="no representation"),
        pytest.param(with_elements(element(0x0008_0005, b"LO", b"ab")), id="not ascending"),
        pytest.param(with_elements().replace(b"1.2.3.4\0", b"../../x\0"), id="path"),
        pytest.param(with_elements().replace(b"1.2.3.4\0", b"1.2.3.\n\0"), id="newline"),
        pytest.param(with_elements().replace(b"1.2.3.4\0", b"1.\xff.3.4\0"), id="not ascii"),
        pytest.param(
            b"".join(element(tag, b"UI", b"1" * 66) for tag, _ in UIDS), id="more than 64 characters"
        ),
        pytest.param(
            with_elements(b"".join(element(0x0009_1001 + n, b"LO", b"") for n in range(30_000))),
            id="30000 elements",
        ),
    ],
)
def test_refuses_what_cannot_be_read(content: bytes) -> None:
    """Hostile or broken headers end in one kind of error."""
    with pytest.raises(UnreadableDataSet):
        identify(content)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_header_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever bytes change, the walk ends with an identity or with `UnreadableDataSet`."""
    content = bytearray(with_elements(element(0x0009_1001, b"OB", b"ab"), NESTED))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    syntax = data.draw(st.sampled_from(uids.TRANSFER_SYNTAXES))
    try:
        identity = identify(bytes(content), syntax)
    except UnreadableDataSet:
        return
    assert uids.is_valid_uid(identity.study_instance_uid)
