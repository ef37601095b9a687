"""`covariance score`: films in, one line each out, without a network."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
from pydicom import dcmwrite

from worker.phantom import phantom_dataset, radiograph


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A film as DICOM and as PNG, a lateral one, and files that are none."""
    folder = tmp_path_factory.mktemp("films")
    size = {"rows": 640, "columns": 520}
    dcmwrite(folder / "pa.dcm", phantom_dataset(1, **size), enforce_file_format=True)
    dcmwrite(folder / "lateral.dcm", phantom_dataset(1, view="LL", **size), enforce_file_format=True)
    cv2.imwrite(str(folder / "pa.png"), radiograph(1, bits=16, **size))
    (folder / "broken.dcm").write_bytes((folder / "pa.dcm").read_bytes()[:20_000])
    (folder / "note.txt").write_text("no film")
    (folder / "empty.dcm").touch()
    # Cut within the file meta information, where pydicom raises what is not documented.
    (folder / "cut.dcm").write_bytes((folder / "pa.dcm").read_bytes()[:142])
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return folder


NAMES = ["pa.dcm", "lateral.dcm", "pa.png", "broken.dcm", "note.txt", "empty.dcm", "missing.dcm"]
NAMES += ["cut.dcm", "huge.png"]


@dataclass
class Run:
    """One run of the real command over all the files; starting the engine takes seconds."""

    exit_code: int
    lines: list[dict[str, Any]]
    errors: str
    overlays: Path
    scratch: Path

    def line(self, name: str) -> dict[str, Any]:
        return self.lines[NAMES.index(name)]


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deploy", "score", "--json", "--overlay", folder / "overlays"]
        + [films / name for name in NAMES],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "scratch"), "COVARIANCE_CONFIG": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return Run(done.returncode, lines, done.stderr, folder / "overlays", folder / "scratch")


def test_a_line_a_file(run, films):
    """`--json` prints one line for each file, in order, with exactly the promised fields."""
    assert [line["file"] for line in run.lines] == [str(films / name) for name in NAMES], run.errors
    for line in run.lines:
        assert list(line) == ["file", "status", "reason", "probability", "logit", "decision", "model"]


def test_a_frontal_film_is_scored(run):
    """A score has probability, logit and decision, and no reason."""
    line = run.line("pa.dcm")
    assert (line["status"], line["reason"]) == ("scored", None)
    assert 0 <= line["probability"] <= 1
    assert isinstance(line["logit"], float)
    assert line["decision"] in ("positive", "negative")


def test_a_lateral_film_is_set_aside(run):
    """A film set aside by policy has its reason and no score."""
    line = run.line("lateral.dcm")
    assert (line["status"], line["reason"], line["logit"]) == ("by-policy", "NOT_FRONTAL", None)


def test_a_picture_scores_as_its_dicom(run):
    """A PNG is wrapped as CR: the same film in more bits gives the same score."""
    assert run.line("pa.png")["logit"] == pytest.approx(run.line("pa.dcm")["logit"], abs=0.05)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("note.txt", "UNREADABLE"),
        ("empty.dcm", "UNREADABLE"),
        ("missing.dcm", "FILE_MISSING"),
        ("cut.dcm", "UNREADABLE"),
        ("huge.png", "UNREADABLE"),
    ],
)
def test_what_is_no_film_has_a_reason(run, name, reason):
    """A foreign, empty or missing file is told with a reason, and stops no other."""
    assert (run.line(name)["status"], run.line(name)["reason"]) == ("quarantined", reason)


def test_a_cut_off_film_is_quarantined(run):
    """A DICOM file that ends within its pixels is not scored."""
    assert run.line("broken.dcm")["status"] == "quarantined"


def test_the_exit_code_tells_of_failures(run):
    """Files that could not be read make the exit code 1, without a traceback."""
    assert run.exit_code == 1
    assert "Traceback" not in run.errors


def test_overlays_are_left_where_asked(run):
    """`--overlay DIR` leaves a PNG for each scored film, and none for the others."""
    overlays = sorted(path.name for path in run.overlays.iterdir())
    assert overlays == ["0001-pa.png", "0003-pa.png"]
    assert cv2.imread(str(run.overlays / overlays[0])).shape[0] >= 1000


def test_nothing_is_left_behind(run):
    """Scoring keeps no copy of a film."""
    assert list(run.scratch.iterdir()) == []
