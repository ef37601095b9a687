"""Which films are learnt from, and what is said of a catalogue that cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib

import cv2
import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from training.films import datasets
from worker import preprocess

pytestmark = pytest.mark.training


def test_only_free_films_of_train_are_learnt_from(films):
    """A film of another split, or whose licence does not let us pass on what was learnt, is left out."""
    learnt = datasets.trainable(datasets.read_rows(films))
    assert {row.split for row in learnt} == {"train"}
    assert {row.licence_class for row in learnt} == {"permissive"}
    assert len(learnt) == 10


def test_a_patient_in_two_splits_is_refused(catalogue):
    """One patient in train and dev stops the run, and both lines are named."""
    train = next(i for i, r in enumerate(catalogue.records) if r["split"] == "train")
    dev = next(i for i, r in enumerate(catalogue.records) if r["split"] == "dev")
    catalogue.records[dev]["patient_group"] = catalogue.records[train]["patient_group"]
    with pytest.raises(
        ConfigurationError,
        match=rf"patient leaks from train \(line {train + 2}, .*\) into dev \(line {dev + 2}, .*\)",
    ):
        datasets.read_rows(catalogue.write())


@pytest.mark.parametrize(
    ("field", "value"), [("target", "maybe"), ("split", "holdout")], ids=["class", "split"]
)
def test_an_unusable_row_is_named_by_its_line(catalogue, field, value):
    """A class or split that we do not know is refused with file, line and value."""
    catalogue.records[3][field] = value
    with pytest.raises(ConfigurationError, match=rf"manifest\.csv, line 5: .*{value}"):
        datasets.read_rows(catalogue.write())


def test_a_missing_catalogue_is_one_sentence(tmp_path):
    """A folder without a catalogue is refused by name."""
    with pytest.raises(ConfigurationError, match=r"manifest\.csv cannot be read"):
        datasets.read_rows(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), (b"other", "not the one")], ids=["missing", "altered"]
)
def test_a_film_that_is_not_there_as_catalogued_is_named(catalogue, tmp_path, content, sentence):
    """A missing or altered film is refused with its file and line."""
    path = catalogue.folder / catalogue.records[4]["file"]
    path.unlink() if content is None else path.write_bytes(content)
    rows = datasets.read_rows(catalogue.folder)
    with pytest.raises(ConfigurationError, match=rf"film_04\.jpg \(line 6\) .*{sentence}"):
        datasets.load_inputs(catalogue.folder, rows, tmp_path / "cache")


def test_one_class_alone_cannot_be_learnt_from(films):
    """A catalogue whose free films are of one class is refused, and the other class is named."""
    rows = [row for row in datasets.read_rows(films) if not row.positive]
    with pytest.raises(ConfigurationError, match="may be learnt from is `covid`"):
        datasets.trainable(rows)


@pytest.mark.parametrize("split", datasets.SPLITS)
@pytest.mark.parametrize("target", ["covid", "noncovid"])
def test_a_split_without_a_class_is_refused(catalogue, split, target):
    """A class without examples is refused by split and class before anything is measured on it."""
    catalogue.records[:] = [r for r in catalogue.records if (r["split"], r["target"]) != (split, target)]
    with pytest.raises(ConfigurationError, match=rf"manifest\.csv has no `{target}` film in `{split}`"):
        datasets.read_rows(catalogue.write())


def test_a_film_that_is_listed_twice_is_refused(catalogue):
    """It would count twice in every figure; both lines are named."""
    catalogue.records.append(dict(catalogue.records[2]))
    with pytest.raises(
        ConfigurationError, match=rf"line {len(catalogue.records) + 1}: .*film_02\.jpg is in line 4 already"
    ):
        datasets.read_rows(catalogue.write())


def test_a_picture_in_two_splits_is_refused(catalogue):
    """The same picture under two names and two patients stops the run, and both films are named."""
    first, second = catalogue.records[1], catalogue.records[5]
    assert (first["split"], second["split"]) == ("train", "dev")
    second["sha256"] = first["sha256"]
    with pytest.raises(ConfigurationError, match=r"picture leaks .*film_01\.jpg\) into dev .*film_05\.jpg"):
        datasets.read_rows(catalogue.write())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda c: c.replace(b"CC0", b"\xff\xfe", 1), r"manifest\.csv is not UTF-8"),
        (lambda c: c[: c.rindex(b",")], r"manifest\.csv, line 25: the row has more or fewer cells"),
        (lambda c: c[: c.rindex(b"patient-")] + b'"patient', r"manifest\.csv, line 25: unexpected end"),
        (lambda c: c.replace(b",CC0", b",CC0,extra", 1), r"manifest\.csv, line 3: the row has more or"),
        (lambda c: c.replace(b"patient-2,", b",", 1), r"manifest\.csv, line 4: `patient_group` is empty"),
        (lambda c: c.replace(b"sha256", b"md5", 1), r"manifest\.csv, line 2: 'sha256' is no known column"),
        (lambda c: c[: c.index(b"images/")], r"manifest\.csv has no rows"),
        (lambda _: b"", r"manifest\.csv has no rows"),
    ],
    ids=["bytes", "cut", "cut in quotes", "long row", "no patient", "no column", "header alone", "empty"],
)
def test_a_damaged_catalogue_is_one_sentence(catalogue, spoil, sentence):
    """A catalogue that is no table is refused with file and line."""
    path = catalogue.folder / "manifest.csv"
    before = path.read_bytes()
    path.write_bytes(spoil(before))
    assert path.read_bytes() != before
    with pytest.raises(ConfigurationError, match=sentence):
        datasets.read_rows(catalogue.folder)


def test_a_catalogue_from_a_spreadsheet_is_read(catalogue):
    """The byte order mark that a spreadsheet puts before the header is no part of a column's name."""
    path = catalogue.folder / "manifest.csv"
    rows = datasets.read_rows(catalogue.folder)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert datasets.read_rows(catalogue.folder) == rows


GREY_HW = np.random.default_rng(3).integers(0, 256, (60, 50), np.uint8)
GREY_HWC = np.repeat(GREY_HW[..., None], 3, axis=2)


def encoded(picture: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


def put(catalogue, content: bytes) -> datasets.Row:
    """Catalogue other bytes as the film of line 6, whatever its name says."""
    record = catalogue.records[4]
    (catalogue.folder / record["file"]).write_bytes(content)
    record["sha256"] = hashlib.sha256(content).hexdigest()
    return datasets.read_rows(catalogue.write())[4]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (encoded(GREY_HW, ".jpg")[:-200], "is not a whole picture"),
        (encoded(GREY_HW)[:-200], "is not a whole picture"),
        (b"", "is not a whole picture"),
        (b"no picture", "is not a whole picture"),
        (encoded(np.dstack([GREY_HW, GREY_HW, 255 - GREY_HW])), "is in colour"),
        (encoded(np.dstack([GREY_HW, GREY_HW, 255 - GREY_HW]), ".jpg"), "is in colour"),
        (encoded(GREY_HW.astype(np.uint16) * 257), "more than 8 bits"),
    ],
    ids=["cut JPEG", "cut PNG", "empty", "text", "colour PNG", "colour JPEG", "16 bits"],
)
def test_a_film_that_is_no_grey_picture_is_named(catalogue, content, sentence):
    """A film that was cut or coloured before it was catalogued is refused with its file and line."""
    row = put(catalogue, content)
    with pytest.raises(ConfigurationError, match=rf"film_04\.jpg \(line 6\) .*{sentence}"):
        datasets.read_film(catalogue.folder, row)


@pytest.mark.parametrize(
    "picture",
    [GREY_HW, GREY_HWC, np.dstack([GREY_HWC, GREY_HW])],
    ids=["one channel", "three", "transparent"],
)
def test_a_grey_film_with_equal_channels_is_grey(catalogue, picture):
    """A grey film that was saved as a colour picture is read as what it shows."""
    row = put(catalogue, encoded(picture))
    np.testing.assert_array_equal(datasets.read_film(catalogue.folder, row), GREY_HW)


def test_a_grey_jpeg_in_three_channels_is_grey(catalogue):
    """Compression leaves equal channels equal."""
    row = put(catalogue, encoded(GREY_HWC, ".jpg"))
    assert datasets.read_film(catalogue.folder, row).shape == GREY_HW.shape


def test_inputs_are_what_the_worker_would_make(films, tmp_path):
    """Training reads films through the serving recipe, and finds them in its cache the next time."""
    rows = datasets.read_rows(films)[:3]
    first = datasets.load_inputs(films, rows, tmp_path)
    expected = preprocess.to_input(datasets.read_film(films, rows[2]))
    np.testing.assert_array_equal(first[2], expected)
    again = datasets.load_inputs(films / "gone", rows, tmp_path)
    np.testing.assert_array_equal(again, first)


def test_a_damaged_cache_is_made_again(films, tmp_path):
    """Half a cache, as a power cut may leave it, costs the time to read the films again."""
    rows = datasets.read_rows(films)[:2]
    first = datasets.load_inputs(films, rows, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(datasets.load_inputs(films, rows, tmp_path), first)


def test_the_data_digest_follows_the_split(films):
    """A film that changes its split changes the digest that binds a run to its data."""
    rows = list(datasets.read_rows(films))
    moved = [dataclasses.replace(rows[0], split="test"), *rows[1:]]
    assert datasets.digest(moved) != datasets.digest(rows)
    assert datasets.digest(rows[::-1]) == datasets.digest(rows)
