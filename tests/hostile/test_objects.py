"""Objects that were tampered with: through the node into the spool, and from there through the decoder."""

from __future__ import annotations

import hashlib
import socket
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.dimse import Field
from dicom_node.errors import Reason
from dicom_node.file_meta import HEAD_BYTES, read_head, write_head
from dicom_node.spool import SpooledInstance
from tests.dicom_node.build import send_raw
from tests.hostile.build import MARK, Node
from tests.hostile.conftest import GROWTH_BYTES
from tests.hostile.films import (
    COLUMNS,
    FILM,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS,
    JPEG_LS,
    REFUSED,
    RLE,
    ROWS,
    Object,
    Sent,
    changed,
    compressed,
    element,
    encapsulated,
    film,
    jpeg_2000,
    kept,
    named,
    progressive_jpeg,
    refused,
    renamed,
    run_lengths,
    sent_as_is,
    with_element,
    with_raw,
    with_siz,
)
from worker.findings import Rejected
from worker.guard import Decoders

STUDY, ROWS_TAG, PIXELS = 0x0020_000D, 0x0028_0010, 0x7FE0_0010
NESTED = element(0x0019_1001, b"SQ", b"", 0xFFFF_FFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
BOMB = {"Rows": 8000, "Columns": 7900}
LARGE = {"Rows": 5000, "Columns": 5000}
TURNED = "\u202e"


def huge_name() -> Object:
    """A PatientName of 5 MB, which only Implicit VR can hold."""
    made = film(PatientName="")
    made.file_meta.TransferSyntaxUID = uids.IMPLICIT_VR_LITTLE_ENDIAN
    whole = sent_as_is(made)
    at = whole.content.index(b"\x10\x00\x10\x00\0\0\0\0")
    name = b"\x10\x00\x10\x00" + (5_000_000).to_bytes(4, "little") + f"{MARK}^NAM".encode() * 500_000
    return replace(whole, content=whole.content[:at] + name + whole.content[at + 8 :])


def executable(magic: bytes) -> Object:
    """A whole Part 10 file, with a program's magic in its preamble, in the place of a data set."""
    whole = sent_as_is(film())
    return replace(whole, content=magic.ljust(128, b"\0") + b"DICM" + whole.content)


def private() -> Object:
    """Names in private elements."""
    made = film()
    block = made.private_block(0x0011, f"{MARK} CREATOR", create=True)
    block.add_new(1, "PN", f"{MARK}^PRIVATE")
    block.add_new(2, "UN", MARK.encode())
    return sent_as_is(made)


def floating() -> Object:
    """Pixels that are not a number."""
    made = film(PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None)
    made.FloatPixelData = b"\0\0\xc0\x7f" * ROWS * COLUMNS
    return sent_as_is(made)


TABLE = [
    # Who it says that it is
    *[
        refused(f"{keyword} {value}", named(keyword, value))
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        for value in (f"../../{MARK}", "..", f"/etc/{MARK}", f";{MARK}", "1." + "2" * 63, "")
    ],
    refused("no StudyInstanceUID", changed(StudyInstanceUID=None)),
    refused("no SeriesInstanceUID", changed(SeriesInstanceUID=None)),
    refused("another UID in the command", renamed(AFFECTED_SOP_INSTANCE="1.2.3"), "A900"),
    refused("a path in the command", renamed(AFFECTED_SOP_INSTANCE="../../x"), "A900"),
    refused("another class in the command", renamed(AFFECTED_SOP_CLASS=uids.CT_IMAGE), "A900"),
    # Structure, before and after what the node walks
    refused("3000 sequences deep before the study", with_raw(NESTED * 3000, before=STUDY)),
    kept(
        "3000 sequences deep",
        with_raw(NESTED.replace(b"\x19", b"\x29") * 3000, before=PIXELS),
        Reason.UNREADABLE,
    ),
    refused("no delimiter before the study", with_raw(NESTED, before=STUDY)),
    kept("no delimiter", with_raw(NESTED.replace(b"\x19", b"\x29"), before=PIXELS), Reason.UNREADABLE),
    refused("4 GiB before the study", with_raw(element(0x0019_1001, b"OB", b"", 0xFFFF_FFF0), before=STUDY)),
    kept(
        "4 GiB",
        with_raw(element(0x0029_1001, b"OB", b"", 0xFFFF_FFF0), before=PIXELS),
        Reason.PIXELS_INCONSISTENT,
    ),
    # pydicom takes an unknown VR to be short, and loses the rest: refused, and never half a header.
    kept(
        "an element of VR ZZ",
        with_raw(element(0x0019_1001, b"ZZ", MARK.encode()), before=STUDY),
        Reason.PIXELS_INCONSISTENT,
    ),
    kept(
        "Rows of VR ZZ", with_element(ROWS_TAG, element(ROWS_TAG, b"ZZ", b"ab")), Reason.PIXELS_INCONSISTENT
    ),
    kept("Rows of VR UL", with_element(ROWS_TAG, element(ROWS_TAG, b"UL", ROWS.to_bytes(4, "little")))),
    kept(
        "Rows of VR PN",
        with_element(ROWS_TAG, element(ROWS_TAG, b"PN", b"SECRET")),
        Reason.PIXELS_INCONSISTENT,
    ),
    kept("a name of 5 MB", huge_name, Reason.UNREADABLE),
    refused("a Windows program for a preamble", lambda: executable(b"MZ")),
    refused("a Linux program for a preamble", lambda: executable(b"\x7fELF")),
    # Text
    *[
        kept(f"a name with {what}", changed(SpecificCharacterSet="ISO_IR 192", PatientName=f"{MARK}{text}"))
        for what, text in {
            "a newline": "\r\n{}",
            "a terminal's escape": "\x1b[2J\x1b]0;x\x07",
            "text turned round": f"{TURNED}EMAN",
            "a script": "<script>alert(1)</script>",
            "a formula": "=cmd|'/C calc'!A1",
            "a format": "%s%n{0.__class__}",
        }.items()
    ],
    kept("an unknown character set", changed(SpecificCharacterSet=f"{MARK} 999")),
    kept("names in private elements", private),
    kept("text for a window", with_element(0x0028_1050, element(0x0028_1050, b"DS", MARK.encode()))),
    kept(
        "text for a slope",
        with_raw(element(0x0028_1053, b"DS", MARK.encode()), before=PIXELS),
        Reason.PIXELS_INCONSISTENT,
    ),
    # Pixels that contradict their header; more of them in tests/worker/test_decode.py
    kept("65535 squared", changed(Rows=65535, Columns=65535), Reason.PIXELS_INCONSISTENT),
    kept("2**31 frames", changed(NumberOfFrames="2147483648"), Reason.MULTIFRAME),
    kept("pixels that are not a number", floating, Reason.PIXELS_INCONSISTENT),
    kept("no pixels", changed(PixelData=None), Reason.PIXELS_INCONSISTENT),
    # Bombs
    kept(
        "JPEG 2000 of 45,000 squared",
        compressed(lambda: with_siz(size=(45_000, 45_000)), JPEG_2000, Rows=45_000, Columns=45_000),
        Reason.PIXELS_INCONSISTENT,
    ),
    kept(
        "JPEG 2000 that claims what its header says",
        compressed(lambda: with_siz(size=(7900, 8000)), JPEG_2000, **BOMB),
        Reason.DECODER_MEMORY,
    ),
    kept(
        "JPEG 2000 in tiles of one pixel",
        compressed(lambda: with_siz(tile=(1, 1)), JPEG_2000),
        Reason.PIXELS_UNDECODABLE,
    ),
    kept(
        "JPEG 2000 in tiles of no pixel",
        compressed(lambda: with_siz(tile=(0, 0)), JPEG_2000),
        Reason.PIXELS_UNDECODABLE,
    ),
    kept(
        "run lengths of 65535 squared",
        compressed(run_lengths(64, 1064), RLE, Rows=65535, Columns=65535),
        Reason.PIXELS_INCONSISTENT,
    ),
    kept(
        "run lengths that are too few",
        compressed(run_lengths(64, 1064), RLE, **LARGE),
        Reason.PIXELS_INCONSISTENT,
    ),
    kept(
        "run lengths that lie outside",
        compressed(run_lengths(64, 0xFFFF_FBB8), RLE),
        Reason.PIXELS_UNDECODABLE,
    ),
    kept(
        "run lengths of 2**32 segments",
        compressed(run_lengths(64, 1064, segments=0xFFFF_FFFF), RLE),
        Reason.PIXELS_UNDECODABLE,
    ),
    kept(
        "a JPEG of endless scans",
        compressed(progressive_jpeg, JPEG_BASELINE, **LARGE, BitsAllocated=8, BitsStored=8, HighBit=7),
        Reason.DECODER_TIMEOUT,
        child="replaced",
    ),
    # Encapsulation
    kept("no fragment", encapsulated(b"\xfe\xff\x00\xe0\0\0\0\0", JPEG_2000), Reason.UNREADABLE),
    kept(
        "a fragment of 4 GiB",
        encapsulated(b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\xf0\xff\xff\xff" + b"ab", JPEG_2000),
        Reason.UNREADABLE,
    ),
    kept(
        "an offset table that points outside",
        encapsulated(
            b"\xfe\xff\x00\xe0\4\0\0\0\xf0\xff\xff\xff\xfe\xff\x00\xe0\4\0\0\0abcd\xfe\xff\xdd\xe0\0\0\0\0",
            JPEG_2000,
        ),
        Reason.PIXELS_UNDECODABLE,
    ),
    kept("another codec's frame", compressed(jpeg_2000, JPEG_LS), Reason.PIXELS_UNDECODABLE),
    kept(
        "a JPEG that is only its end",
        compressed(b"\xff\xd8\xff\xd9", JPEG_LOSSLESS),
        Reason.PIXELS_UNDECODABLE,
    ),
]


def send(node: Node, sent: Object) -> str:
    """Send an object on an association of its own; the status."""
    context = (sent.command.uid(Field.AFFECTED_SOP_CLASS), sent.transfer_syntax)
    if context[0] not in node.settings.node.sop_classes:
        context = (uids.COMPUTED_RADIOGRAPHY, sent.transfer_syntax)
    with node.requestor(context) as association:
        return f"{send_raw(association, sent.command, sent.content):04X}"


def record(decoders: Decoders, node: Node, files: set[Path]) -> tuple[object, str]:
    """What the decoder makes of the one new file in the spool, and its sentence."""
    new = set(node.files) - files
    if not new:
        return REFUSED, ""
    (path,) = new
    (instance,) = [one for one in node.spool.instances(path.parent.name) if one.path == path]
    found = decoders.read(instance)
    if isinstance(found, Rejected):
        return found.reason, found.sentence
    return (FILM if found.film is not None else found.eligibility.reason), ""


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_what_is_answered_and_recorded(
    case: Sent, node: Node, decoders: Decoders, capfd: pytest.CaptureFixture[str]
) -> None:
    """Status and record are those of the table, the next caller is served, the next film read."""
    files, pids = set(node.files), decoders.pids
    assert send(node, case.make()) == case.answer
    assert node.is_well()
    recorded, sentence = record(decoders, node, files)
    assert recorded == case.record
    assert (decoders.pids == pids) == (case.child == "lives")
    assert MARK not in sentence.upper()
    assert MARK not in "".join(capfd.readouterr()).upper()


def test_a_sound_film_after_all(node: Node, decoders: Decoders) -> None:
    """A film to which nothing was done is kept with an empty preamble, and read."""
    files = set(node.files)
    assert send(node, sent_as_is(film())) == "0000"
    (path,) = set(node.files) - files
    assert path.read_bytes()[:128] == bytes(128)
    assert record(decoders, node, files) == (FILM, "")


def test_a_deflated_bomb(node: Node, decoders: Decoders) -> None:
    """A deflated half of a gigabyte in a spool, where no sender can have put it, is not inflated."""
    files = set(node.files)
    assert send(node, sent_as_is(film())) == "0000"
    (path,) = set(node.files) - files
    (instance,) = node.spool.instances(path.parent.name)
    bomb, pids = deflated(instance), decoders.pids
    try:
        assert decoders.read(bomb).reason is Reason.PIXELS_UNDECODABLE
        assert decoders.pids == pids
    finally:
        bomb.path.unlink()


def deflated(instance: SpooledInstance) -> SpooledInstance:
    content = instance.path.read_bytes()
    head = write_head(replace(read_head(content), transfer_syntax_uid="1.2.840.10008.1.2.1.99"))
    packer = zlib.compressobj(9, wbits=-15)
    zeros = bytes(1 << 20)
    packed = packer.compress(content[HEAD_BYTES:]) + b"".join(packer.compress(zeros) for _ in range(512))
    packed += packer.flush()
    assert len(packed) < 1_000_000
    path = instance.path.with_name("bomb")
    path.write_bytes(head + packed)
    return replace(instance, path=path, sha256=hashlib.sha256(packed).hexdigest())


def test_no_address_in_a_film_is_visited(node: Node, decoders: Decoders) -> None:
    """A RetrieveURL is text: nobody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        files, url = set(node.files), f"http://127.0.0.1:{trap.getsockname()[1]}/{MARK}"
        assert send(node, sent_as_is(film(RetrieveURL=url, RetrieveURI=url))) == "0000"
        assert record(decoders, node, files) == (FILM, "")
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_memory_is_flat(node: Node) -> None:
    """After all of this the node is hardly larger than it was after its first good objects."""
    assert node.memory() - node.baseline < GROWTH_BYTES


def test_nothing_is_told(node: Node) -> None:
    """The node wrote no name, no id and no value anywhere but into its spool, and said why it refused."""
    told = dict(node.told())
    assert "object_refused" in "".join(told.values())
    assert [path for path, text in told.items() if MARK in text.upper()] == []


def test_nothing_lies_outside_the_spool(node: Node) -> None:
    """Whatever an object called itself, the node made no file but in its spool, and only such as it names."""
    folder = node.spool.root.parent
    assert {path.name for path in folder.iterdir()} == {"covariance.toml", "node.log", "spool"}
    assert all(uids.is_valid_uid(path.parent.name) for path in node.files)
