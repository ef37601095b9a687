"""Broken and hostile files end as a rejection with the right reason, and healthy ones as a film."""

from __future__ import annotations

from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.errors import Reason, Retryable
from dicom_node.uids import CT_IMAGE
from worker import preprocess
from worker.decode import read_film
from worker.findings import Reading, Rejected, Verdict
from worker.settings import EligibilitySection

SETTINGS = EligibilitySection()


def read(path, **options):
    return read_film(path, SETTINGS, **options)


def reason_of(path, **options) -> Reason | None:
    found = read(path, **options)
    assert isinstance(found, Rejected), found
    return found.reason


def compressed(ds: Dataset, frame: bytes, syntax) -> Dataset:
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def test_a_film(phantom, write):
    """A healthy film gives the network's input, a display image and what was found in its header."""
    found = read(write(phantom))
    assert isinstance(found, Reading)
    assert found.eligibility.verdict is Verdict.ELIGIBLE
    assert found.sop_instance_uid == phantom.SOPInstanceUID
    assert found.film.input_HW.shape == (preprocess.SIZE, preprocess.SIZE)
    assert found.film.display_HW.shape == (520, 430)
    assert (found.film.rows, found.film.columns, found.film.bits_stored) == (520, 430, 12)


def test_what_is_not_analysed_is_not_decoded(phantom, write):
    """An image that policy sets aside has a reading without film, even if its pixels are broken."""
    phantom.SOPClassUID = phantom.file_meta.MediaStorageSOPClassUID = CT_IMAGE
    phantom.PixelData = b"\0\0"
    found = read(write(phantom))
    assert (found.eligibility.reason, found.film) == (Reason.SOP_CLASS, None)


def test_a_film_without_contrast_is_set_aside(phantom, write):
    """A constant image is by policy not analysed."""
    phantom.PixelData = np.full((520, 430), 800, np.uint16).tobytes()
    found = read(write(phantom))
    assert (found.eligibility.reason, found.film) == (Reason.NO_CONTRAST, None)


def test_missing_file(tmp_path):
    """A spooled file that is gone is a named defect of its instance."""
    found = read(tmp_path / "gone.dcm", sop_instance_uid="1.2.3")
    assert (found.sop_instance_uid, found.reason) == ("1.2.3", Reason.FILE_MISSING)


def test_a_file_that_is_there_and_cannot_be_read(tmp_path):
    """What the machine is to blame for is tried again: the film is not set aside for it."""
    with pytest.raises(Retryable, match="IsADirectoryError"):
        read(tmp_path)


def test_altered_file(phantom, spooled):
    """One changed bit in a spooled file is found."""
    instance = spooled(phantom)
    assert isinstance(read(instance.path, sha256=instance.sha256), Reading)
    content = bytearray(instance.path.read_bytes())
    content[-1000] ^= 1
    instance.path.write_bytes(content)
    assert reason_of(instance.path, sha256=instance.sha256) is Reason.FILE_ALTERED


@pytest.mark.parametrize(
    "content",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 400],
    ids=["empty", "http", "no meta", "garbage"],
)
def test_no_dicom(tmp_path, content):
    """What is not DICOM is refused."""
    path = tmp_path / "film.dcm"
    path.write_bytes(content)
    assert reason_of(path) in (Reason.UNREADABLE, Reason.PIXELS_UNDECODABLE)


def with_raw_elements(path, raw: bytes) -> None:
    """Put raw Explicit VR bytes before the pixel data."""
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[:at] + raw + content[at:])


@pytest.mark.parametrize(
    "raw",
    [
        b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" * 3000,
        b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff",
        b"\x40\x00\x00\x03OB\0\0\xf0\xff\xff\xff",
    ],
    ids=["3000 deep", "no delimiter", "length 4 GiB"],
)
def test_malformed_structure(phantom, write, raw):
    """Endless nesting, missing delimiters and impossible lengths are refused, not suffered."""
    path = write(phantom)
    with_raw_elements(path, raw)
    assert reason_of(path) in (Reason.UNREADABLE, Reason.PIXELS_INCONSISTENT)


def test_a_name_of_megabytes(phantom, write):
    """A value a thousand times too long is refused, and no sentence quotes it."""
    path = write(phantom)
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x10\x00PN")
    name = b"\x10\x00\x10\x00UN\0\0" + (5_000_000).to_bytes(4, "little") + b"SECRET^NAME " * 416_667
    path.write_bytes(content[:at] + name[: 12 + 5_000_000] + content[at + 8 + content[at + 6] :])
    found = read(path)
    assert found.reason is Reason.UNREADABLE
    assert "SECRET" not in found.sentence


def test_deflated_is_not_inflated(phantom, write):
    """A deflated data set is refused by its transfer syntax, before anything is inflated."""
    phantom.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert reason_of(write(phantom)) is Reason.PIXELS_UNDECODABLE


@pytest.mark.parametrize(
    "changes",
    [
        {"Rows": 521},
        {"Columns": 300},
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 0},
        {"Rows": None},
        {"BitsAllocated": 0},
        {"BitsAllocated": 1},
        {"BitsAllocated": 32},
        {"BitsAllocated": 64},
        {"BitsStored": 17},
        {"BitsStored": 0},
        {"HighBit": 16},
        {"HighBit": 3},
        {"PhotometricInterpretation": "MONOCHROME3"},
        {"PhotometricInterpretation": None},
        {"RescaleSlope": "0", "RescaleIntercept": "0"},
        {"PixelData": None},
    ],
    ids=str,
)
def test_headers_that_contradict_the_pixels(phantom, write, changes):
    """A header that cannot be true of the bytes is refused as inconsistent."""
    for keyword, value in changes.items():
        if value is None:
            delattr(phantom, keyword)
        else:
            setattr(phantom, keyword, value)
    assert reason_of(write(phantom)) is Reason.PIXELS_INCONSISTENT


@pytest.mark.parametrize("length", [-4000, -2, 2, 4000])
def test_too_short_and_too_long(phantom, write, length):
    """Uncompressed pixel data of a wrong length is refused, whichever way it is wrong."""
    phantom.PixelData = phantom.PixelData[:length] if length < 0 else phantom.PixelData + b"\0" * length
    assert reason_of(write(phantom)) is Reason.PIXELS_INCONSISTENT


ENCODE = {
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: lambda grey: imagecodecs.jpeg8_encode(
        grey, lossless=True, predictor=1, bitspersample=12
    ),
    JPEG2000Lossless: lambda grey: imagecodecs.jpeg2k_encode(grey, reversible=True, codecformat="j2k"),
}


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("side", ["Rows", "Columns"])
def test_a_frame_of_another_size(phantom, write, syntax, side):
    """A compressed frame whose own header names another size is refused before it is decoded."""
    ds = compressed(phantom, ENCODE[syntax](phantom.pixel_array), syntax)
    setattr(ds, side, ds[side].value + 1)
    assert reason_of(write(ds)) is Reason.PIXELS_INCONSISTENT


def test_a_code_stream_that_claims_gigabytes(phantom, write):
    """An edited SIZ marker does not make the decoder allocate what it claims."""
    frame = bytearray(ENCODE[JPEG2000Lossless](phantom.pixel_array))
    at = frame.index(b"\xff\x51") + 6
    frame[at : at + 8] = (45_000).to_bytes(4, "big") * 2
    assert reason_of(write(compressed(phantom, bytes(frame), JPEG2000Lossless))) is Reason.PIXELS_INCONSISTENT


def test_run_lengths_that_claim_gigabytes(phantom, write):
    """Two kilobytes of run lengths for a film of 65535 squared are refused by the size."""
    frame = np.array([2, 64, 1000] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 1000
    ds = compressed(phantom, frame, RLELossless)
    ds.Rows = ds.Columns = 65535
    assert reason_of(write(ds)) is Reason.PIXELS_INCONSISTENT


def test_colour_in_a_grey_header(phantom, write):
    """Three components in the code stream and one in the header is refused."""
    colour = np.repeat(np.zeros((520, 430, 1), np.uint8), 3, axis=2)
    frame = imagecodecs.jpeg2k_encode(colour, reversible=True, codecformat="j2k")
    assert reason_of(write(compressed(phantom, frame, JPEG2000Lossless))) is Reason.PIXELS_INCONSISTENT


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_frame(phantom, write, syntax, share):
    """A frame that ends too early is refused as undecodable."""
    frame = ENCODE[syntax](phantom.pixel_array)
    ds = compressed(phantom, frame[: max(int(share * len(frame)), 4)], syntax)
    assert reason_of(write(ds)) is Reason.PIXELS_UNDECODABLE


def test_truncated_run_lengths(phantom, write, wrap):
    """A run-length frame that ends too early holds too few pixels and is refused."""
    ds = wrap(phantom.pixel_array, bits=12, syntax=RLELossless)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    path = write(compressed(phantom, frame[: len(frame) // 2], RLELossless))
    assert reason_of(path) in (Reason.PIXELS_UNDECODABLE, Reason.PIXELS_INCONSISTENT)


def test_garbage_in_a_frame(phantom, write):
    """Bytes that are no code stream are refused as undecodable."""
    ds = compressed(phantom, b"not a code stream " * 100, JPEG2000Lossless)
    assert reason_of(write(ds)) is Reason.PIXELS_UNDECODABLE


@pytest.mark.parametrize("start", [0, 63, 10_000, 0xFFFF_FBB8])
def test_run_lengths_that_lie_outside_of_their_frame(phantom, write, start):
    """Offsets that lead out of the frame are refused: the decoder would read there (found by fuzzing)."""
    frame = np.array([2, 64, start] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 1000
    assert reason_of(write(compressed(phantom, frame, RLELossless))) is Reason.PIXELS_UNDECODABLE


def test_a_film_that_lacks_tiles(phantom, write):
    """A JPEG 2000 frame without some of its tiles is refused, and not filled up."""
    file = BytesIO()
    Image.fromarray(phantom.pixel_array).save(file, "JPEG2000", tile_size=(256, 256), no_jp2=True)
    frame = file.getvalue()
    assert isinstance(read(write(compressed(phantom, frame, JPEG2000Lossless))), Reading)
    last = frame.rindex(b"\xff\x90\x00\x0a")
    cut = frame[:last] + b"\xff\xd9"
    assert reason_of(write(compressed(phantom, cut, JPEG2000Lossless))) is Reason.PIXELS_UNDECODABLE


def test_a_data_set_that_ends_within_its_pixels(phantom, write):
    """A file that was cut is unreadable, and not taken for one of another class."""
    path = write(compressed(phantom, ENCODE[JPEG2000Lossless](phantom.pixel_array), JPEG2000Lossless))
    path.write_bytes(path.read_bytes()[:-100])
    assert reason_of(path) is Reason.UNREADABLE
