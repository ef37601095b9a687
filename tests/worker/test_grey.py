import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import Permanent, Reason
from worker.grey import to_display, to_grey
from worker.pixels import decode_pixels, pixel_format


def film(words, *, bits=12, signed=False, high_bit=None, photometric="MONOCHROME2", **attributes) -> Dataset:
    words = np.asarray(words)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Rows, ds.Columns = words.shape
    ds.BitsAllocated = 8 * words.itemsize
    ds.BitsStored, ds.HighBit = bits, bits - 1 if high_bit is None else high_bit
    ds.PixelRepresentation = int(signed)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.PixelData = words.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def ramp(low=0, high=4095, dtype=np.uint16):
    return np.linspace(low, high, 64 * 64).round().astype(dtype).reshape(64, 64)


def grey_of(ds):
    form = pixel_format(ds)
    return to_grey(ds, decode_pixels(ds, form), form)


def shares(ds):
    return grey_of(ds).grey_HW / 65535


def window(centre, width, **more):
    return {"WindowCenter": centre, "WindowWidth": width, **more}


def test_linear_window():
    """LINEAR maps as PS3.3 C.11.2.1.2 says, half a value below the centre included."""
    ds = film(ramp(), **window("2048", "1000"))
    expected = np.clip((ramp() - 2047.5) / 999 + 0.5, 0, 1)
    assert np.allclose(shares(ds), expected, atol=1e-4)
    assert grey_of(ds).window == "LINEAR 2048/1000"


def test_linear_exact_window():
    """LINEAR_EXACT maps centre minus half the width to black."""
    ds = film(ramp(), **window("2048", "1000", VOILUTFunction="LINEAR_EXACT"))
    assert np.allclose(shares(ds), np.clip((ramp() - 2048.0) / 1000 + 0.5, 0, 1), atol=1e-4)


def test_sigmoid_window():
    """SIGMOID is the logistic function of PS3.3 C.11.2.1.3.1."""
    ds = film(ramp(), **window("2048", "1000", VOILUTFunction="SIGMOID"))
    assert np.allclose(shares(ds), 1 / (1 + np.exp(-4 * (ramp() - 2048.0) / 1000)), atol=1e-4)


def test_no_text_of_the_header_is_in_the_window_label():
    """A function that the standard does not define is taken for LINEAR, and its text goes nowhere."""
    film_with_text = film(ramp(), **window("2048", "1000", VOILUTFunction="DOE^JOHN 1960"))
    assert grey_of(film_with_text).window == "LINEAR 2048/1000"


def test_first_of_several_windows():
    """Of several windows the first one counts."""
    several = film(ramp(), **window(["1000", "2048"], ["800", "4096"]))
    assert np.array_equal(grey_of(several).grey_HW, grey_of(film(ramp(), **window("1000", "800"))).grey_HW)


@pytest.mark.parametrize(
    "bad",
    [window("2048", "0"), window("2048", "-5"), window("nan", "100"), window("900000", "10"), {}],
    ids=["zero", "negative", "nan", "elsewhere", "absent"],
)
def test_a_window_that_shows_nothing_is_not_used(bad):
    """A window that is malformed or misses the film gives way to the film's own range."""
    ds = film(ramp(500, 3000), **bad)
    found = grey_of(ds)
    assert found.window == "none"
    assert shares(ds).min() < 0.01
    assert shares(ds).max() > 0.99


def test_the_next_window_stands_in():
    """When the first window is malformed the second is used."""
    assert grey_of(film(ramp(), **window(["2048", "2000"], ["0", "3000"]))).window == "LINEAR 2000/3000"


def lut(first, entries, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "US", list(entries))
    item["LUTDescriptor"].VR = "US"
    return item


def test_voi_lut_sequence():
    """A VOI LUT is looked up, and its ends are held outside of its range."""
    ds = film(ramp(0, 300), VOILUTSequence=[lut(100, range(0, 4096, 40), 12)])
    expected = (np.clip(ramp(0, 300).astype(int) - 100, 0, 102) * 40) / 4095
    assert np.allclose(shares(ds), expected, atol=1e-4)
    assert grey_of(ds).window == "LUT"


@pytest.mark.parametrize(("bits", "peak"), [(16, 4095), (8, 4095), (12, 4095), (8, 255), (16, 65535)])
def test_entries_of_a_voi_lut_are_as_deep_as_they_are(bits, peak):
    """For CR only 8 and 16 may be said (PS3.3 C.11.2.1.1), and are, beside entries of 12 bits."""
    ds = film(ramp(0, 4095), VOILUTSequence=[lut(0, np.linspace(0, peak, 4096).astype(int).tolist(), bits)])
    assert shares(ds).max() == pytest.approx(1, abs=1e-3)
    assert (shares(ds) > 0.99).mean() < 0.05


def test_modality_lut():
    """A modality LUT of 12 bits comes before the window."""
    ds = film(ramp(0, 200), ModalityLUTSequence=[lut(0, range(0, 4020, 20), 12)], **window("2048", "4096"))
    assert np.allclose(shares(ds), (ramp(0, 200) * 20.0 - 2047.5) / 4095 + 0.5, atol=1e-3)


def test_rescale_comes_before_the_window():
    """The window is in rescaled units."""
    ds = film(ramp(), RescaleSlope="2", RescaleIntercept="-1000", **window("3096", "8192"))
    assert np.allclose(shares(ds), (ramp() * 2.0 - 4095.5) / 8191 + 0.5, atol=1e-3)


@pytest.mark.parametrize("slope", ["0", "nan", "inf"])
def test_a_rescale_without_meaning_is_refused(slope):
    """RescaleSlope 0 or not a number is a contradiction, not a picture."""
    with pytest.raises(Permanent) as refused:
        grey_of(film(ramp(), RescaleSlope=slope, RescaleIntercept="0"))
    assert refused.value.reason is Reason.PIXELS_INCONSISTENT


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_inverted_exactly_once(photometric, shape, inverted):
    """MONOCHROME1 and INVERSE invert, once, whether one or both are there."""
    ds = film(ramp(), photometric=photometric, **window("2048", "4096"))
    if shape:
        ds.PresentationLUTShape = shape
    rising = shares(ds)[0, 0] < shares(ds)[-1, -1]
    assert rising != inverted
    assert grey_of(ds).inverted == inverted


def test_bits_above_the_high_bit_are_ignored():
    """Overlays or junk above the high bit do not change the picture."""
    junk = ramp() | np.uint16(0xA000)
    assert np.array_equal(grey_of(film(junk)).grey_HW, grey_of(film(ramp())).grey_HW)


def test_bits_below_the_lowest_are_ignored():
    """Values that are stored at the top of the word are found there."""
    high = (ramp() << 4) | np.uint16(0x5)
    ds = film(high, high_bit=15, **window("2048", "4096"))
    assert np.array_equal(grey_of(ds).grey_HW, grey_of(film(ramp(), **window("2048", "4096"))).grey_HW)


def test_signed_values():
    """Two's complement in fewer bits than the word is sign-extended."""
    stored = ramp(-2048, 2047, np.int16)
    ds = film(stored & np.int16(0x0FFF), signed=True, **window("0", "4096"))
    assert np.allclose(shares(ds), (stored + 0.5) / 4095 + 0.5, atol=1e-3)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(photometric):
    """Padding is black whatever its value, and does not stretch the range."""
    words = ramp(1000, 2000)
    words[:20] = 4095
    ds = film(words, photometric=photometric, PixelPaddingValue=4095)
    assert not shares(ds)[:20].any()
    assert np.ptp(shares(ds)[20:]) > 0.98


def test_a_film_of_one_grey_is_flat():
    """A constant film, and one of nothing but padding, are flat."""
    constant = np.full((64, 64), 700, np.uint16)
    assert grey_of(film(constant)).flat
    assert grey_of(film(constant, PixelPaddingValue=700)).flat
    assert not grey_of(film(ramp())).flat


@pytest.mark.parametrize("shape", [(2500, 2048), (4301, 3521), (1025, 300), (400, 300)])
def test_display_fits(shape):
    """The display image keeps its aspect, is never enlarged and at most 1024 pixels long."""
    grey = np.tile(np.linspace(0, 65535, shape[1]).astype(np.uint16), (shape[0], 1))
    shown = to_display(grey)
    assert max(shown.shape) == min(max(shape), 1024)
    assert shown.shape[0] / shown.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.01)
    assert shown.dtype == np.uint8
    assert np.abs(shown[0].astype(float) - np.linspace(0, 255, shown.shape[1])).max() < 3
