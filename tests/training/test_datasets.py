"""Which films are learnt from, and what is said of a catalogue that cannot be used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from training import datasets
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
        ConfigurationError, match=rf"leaks from train \(line {train + 2}\) into dev \(line {dev + 2}\)"
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
    """A catalogue whose free films are of one class is refused."""
    rows = [row for row in datasets.read_rows(films) if not row.positive]
    with pytest.raises(ConfigurationError, match="both classes"):
        datasets.trainable(rows)


def test_inputs_are_what_the_worker_would_make(films, tmp_path):
    """Training reads films through the serving recipe, and finds them in its cache the next time."""
    rows = datasets.read_rows(films)[:3]
    first = datasets.load_inputs(films, rows, tmp_path)
    expected = preprocess.to_input(datasets.read_film(films, rows[2]))
    np.testing.assert_array_equal(first[2], expected)
    again = datasets.load_inputs(films / "gone", rows, tmp_path)
    np.testing.assert_array_equal(again, first)


def test_the_data_digest_follows_the_split(films):
    """A film that changes its split changes the digest that binds a run to its data."""
    rows = list(datasets.read_rows(films))
    moved = [dataclasses.replace(rows[0], split="test"), *rows[1:]]
    assert datasets.digest(moved) != datasets.digest(rows)
    assert datasets.digest(rows[::-1]) == datasets.digest(rows)
