"""Splits that share no patient and no picture, whatever the catalogue's order, and what is said of others."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import structlog

from dicom_node.errors import ConfigurationError
from training.__main__ import main
from training.films import datasets, splits
from training.films.datasets import Row
from training.films.splits import By

pytestmark = pytest.mark.training


@pytest.fixture
def split_command(monkeypatch):
    """Run `split` and return the exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["training", "split", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    yield run
    structlog.reset_defaults()


def rows_of(patients: list[tuple[int, int]]) -> tuple[Row, ...]:
    """For each patient as many COVID and other films as told."""
    classes = [
        (patient, positive)
        for patient, (covid, others) in enumerate(patients)
        for positive in (True,) * covid + (False,) * others
    ]
    return tuple(
        Row(
            line=i + 2,
            file=f"film_{i:04d}.jpg",
            positive=positive,
            split="train",
            patient_group=f"patient-{patient}",
            origin="generated",
            licence="CC0",
            licence_class="permissive",
            source_balanced=False,
            seedlike=True,
            label="covid" if positive else "normal",
            view="",
            sha256=hashlib.sha256(f"{i}".encode()).hexdigest(),
        )
        for i, (patient, positive) in enumerate(classes)
    )


# The report's numbers, 300 and 1001 films, with patients of one to four films and some of both classes.
REPORT = rows_of([(1, 0)] * 150 + [(4, 0)] * 30 + [(2, 1)] * 15 + [(0, 1)] * 686 + [(0, 3)] * 100)


def counts(rows: tuple[Row, ...]) -> dict[str, tuple[int, int]]:
    films = Counter((row.split, row.positive) for row in rows)
    return {split: (films[split, True], films[split, False]) for split in datasets.SPLITS}


@pytest.mark.parametrize("by", By)
def test_the_draw_has_the_numbers_of_the_report(by):
    """Of 300/1001 films 65/65 go to dev, 65/65 to test and 170/871 to train, however they are drawn."""
    drawn = splits.draw(REPORT, seed=1, by=by)
    assert counts(drawn) == {"train": (170, 871), "dev": (65, 65), "test": (65, 65)}
    assert [row.file for row in drawn] == [row.file for row in REPORT]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_split(seed):
    """By patient, every draw passes the guard that every run begins with."""
    datasets.require_disjoint(splits.draw(REPORT, seed=seed))


def test_the_reports_own_draw_leaks():
    """By image, films of one patient come to stand in several splits, which is counted and refused."""
    drawn = splits.draw(REPORT, seed=1, by=By.IMAGE)
    assert {leak.why for leak in splits.leaks(drawn, ())} == {"films of one patient"}
    with pytest.raises(ConfigurationError, match="patient leaks"):
        datasets.require_disjoint(drawn)


@pytest.mark.parametrize("by", By)
def test_the_draw_follows_the_seed_and_not_the_order(by):
    """Another order or other patients' names give every film the same split, another seed does not."""
    pairs = [(0, 200), (200, 400)]
    drawn = {row.file: row.split for row in splits.draw(REPORT, pairs, seed=3, by=by)}
    order = np.random.default_rng(0).permutation(len(REPORT))
    place = {int(old): new for new, old in enumerate(order)}
    shuffled = [replace(REPORT[i], patient_group=f"x{REPORT[i].patient_group}") for i in order]
    again = splits.draw(shuffled, [(place[i], place[j]) for i, j in pairs], seed=3, by=by)
    assert {row.file: row.split for row in again} == drawn
    assert {row.file: row.split for row in splits.draw(REPORT, pairs, seed=4, by=by)} != drawn


def test_near_duplicates_go_together():
    """Films that are copies of each other under several patients' names are drawn as one."""
    pairs = [(0, i) for i in range(1, 30)]
    for seed in range(5):
        drawn = splits.draw(REPORT, pairs, seed=seed)
        assert len({drawn[i].split for i in range(30)}) == 1
        assert not splits.leaks(drawn, pairs)


def test_films_of_unknown_patients_are_learnt_from():
    """A film whose patient is not known could be of anybody in train: it never judges."""
    unknown = tuple(replace(row, patient_known=row.positive or i % 2 == 0) for i, row in enumerate(REPORT))
    for seed in range(3):
        drawn = splits.draw(unknown, seed=seed)
        assert all(row.patient_known for row in drawn if row.split != "train")


def test_pairs_of_films_need_not_add_up():
    """Where every patient has two films, an odd half of dev is one film less of each class."""
    drawn = splits.draw(rows_of([(2, 0)] * 50 + [(0, 2)] * 160), seed=0)
    assert counts(drawn) == {"train": (60, 280), "dev": (20, 20), "test": (20, 20)}


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        ([(1, 0)] * 4 + [(0, 1)] * 196, "do not suffice for 10 of each class in `dev`"),
        ([(1, 0)] * 12 + [(0, 1)] * 188, "do not suffice for 10 of each class in `test`"),
        ([(1, 0)] * 20 + [(0, 1)] * 180, "none is left for `train`"),
        ([(0, 1)] * 40, "do not suffice"),
        ([(1, 1)], "do not suffice"),
        ([(30, 0)] + [(0, 1)] * 170, "do not suffice"),
    ],
    ids=["few", "enough for dev", "none to learn from", "one class", "one patient", "one patient of a class"],
)
def test_too_few_films_are_one_sentence(patients, sentence):
    """A class without examples enough is refused, and the split that lacks them is named."""
    with pytest.raises(ConfigurationError, match=sentence):
        splits.draw(rows_of(patients), seed=0)


def copies(picture_HW: np.ndarray) -> dict[str, np.ndarray]:
    height, width = picture_HW.shape
    return {
        "JPEG": cv2.imdecode(cv2.imencode(".jpg", picture_HW, [1, 70])[1], cv2.IMREAD_GRAYSCALE),
        "half": cv2.resize(picture_HW, (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        "square": cv2.resize(picture_HW, (256, 256)),
        "gamma": np.rint(255 * (picture_HW / 255) ** 0.8).astype(np.uint8),
        "negative": 255 - picture_HW,
    }


@pytest.mark.parametrize("copy", ["JPEG", "half", "square", "gamma", "negative"])
def test_a_copy_is_found_and_two_films_are_not_one(catalogue, copy):
    """A copy at another size, quality, gamma or sign is near; no two other films are."""
    source, target = catalogue.records[0], catalogue.records[7]
    picture_HW = cv2.imread(str(catalogue.folder / source["file"]), cv2.IMREAD_GRAYSCALE)
    content = cv2.imencode(".png", copies(picture_HW)[copy])[1].tobytes()
    (catalogue.folder / target["file"]).write_bytes(content)
    target["sha256"] = hashlib.sha256(content).hexdigest()
    folder = catalogue.write()
    assert splits.alike(folder, datasets.read_rows(folder)) == ((0, 7),)


def test_real_films_of_different_patients_are_not_near(shared_data):
    """On real films the threshold takes no patient for another."""
    rows = datasets.read_rows(shared_data / "cxr")[:200]
    pairs = splits.alike(shared_data / "cxr", rows)
    assert all(rows[i].patient_group == rows[j].patient_group for i, j in pairs)


def test_check_names_every_leak(catalogue, split_command, capsys):
    """`--check` names both films of each leaking pair with their lines, and ends with 2."""
    first, second, third = (catalogue.records[i] for i in (1, 5, 7))
    assert [r["split"] for r in (first, second, third)] == ["train", "dev", "test"]
    second["patient_group"] = first["patient_group"]
    content = (catalogue.folder / first["file"]).read_bytes() + b"\0"
    (catalogue.folder / third["file"]).write_bytes(content)
    third["sha256"] = hashlib.sha256(content).hexdigest()
    assert split_command("--data", catalogue.write(), "--check") == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        "images/film_01.jpg (line 3, train) and images/film_05.jpg (line 7, dev): films of one patient",
        "images/film_01.jpg (line 3, train) and images/film_07.jpg (line 9, test): near-duplicates",
    ]
    assert err.splitlines()[-1] == f"Error: 2 pairs of films stand in two splits of {catalogue.folder}."


def test_check_passes_a_clean_catalogue(films, split_command, capsys):
    """Where nothing leaks, `--check` ends with 0 and writes nothing."""
    before = sorted(films.iterdir())
    assert split_command("--data", films, "--check") == 0
    assert sorted(films.iterdir()) == before
    assert "images/" not in capsys.readouterr().out


@pytest.mark.parametrize("by", By)
def test_the_new_catalogue_can_be_learnt_from(catalogue, tmp_path, split_command, by):
    """From any split or none, a catalogue is written that differs in its splits only and finds its films."""
    for record in catalogue.records:
        record["split"] = ""
    folder, target = catalogue.write(), tmp_path / "new" / "split"
    assert split_command("--data", folder, "--to", target, "--by", by.value) == 0
    rows = datasets.read_rows(target)
    assert counts(rows) == {"train": (10, 10), "dev": (1, 1), "test": (1, 1)}
    np.testing.assert_array_equal(
        datasets.read_film(target, rows[3]), cv2.imread(str(folder / catalogue.records[3]["file"]), 0)
    )
    with (target / "manifest.csv").open(encoding="utf-8", newline="") as file:
        written = [record | {"split": "", "file": ""} for record in csv.DictReader(file)]
    assert written == [record | {"file": ""} for record in catalogue.records]


def test_only_the_reports_films_are_drawn(catalogue, tmp_path, split_command, capsys):
    """`--seedlike` leaves the other films out, and says so where there are none."""
    for record in catalogue.records[:-20]:
        record["seedlike"] = "0"
    assert split_command("--data", catalogue.write(), "--to", tmp_path / "new", "--seedlike") == 0
    assert len(datasets.read_rows(tmp_path / "new")) == 20
    for record in catalogue.records:
        record["seedlike"] = "0"
    assert split_command("--data", catalogue.write(), "--to", tmp_path / "new", "--seedlike") == 2
    assert "has no row of the report's subset" in capsys.readouterr().err


def test_the_catalogue_that_is_read_is_not_replaced(catalogue, tmp_path, split_command, capsys):
    """The old splits cannot be lost: the new catalogue goes into another folder, by whatever name."""
    before = (catalogue.folder / "manifest.csv").read_bytes()
    (tmp_path / "link").symlink_to(catalogue.folder)
    assert split_command("--data", catalogue.folder, "--to", tmp_path / "link") == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (catalogue.folder / "manifest.csv").read_bytes() == before


def test_a_write_that_fails_leaves_the_catalogue_before(catalogue, tmp_path):
    """A catalogue is replaced when the new one is whole, and not before."""
    rows, records = splits.read_catalogue(catalogue.folder, splitted=True, seedlike=False)
    splits.write_catalogue(rows, records, catalogue.folder, tmp_path / "new")
    before = (tmp_path / "new" / "manifest.csv").read_bytes()
    with pytest.raises(ValueError, match="zip"):
        splits.write_catalogue(rows[:-1], records, catalogue.folder, tmp_path / "new")
    assert (tmp_path / "new" / "manifest.csv").read_bytes() == before
