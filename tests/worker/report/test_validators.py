"""Programs of other people read what we write."""

import re
import subprocess
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_keyword

from dicom_node.errors import Reason
from dicom_node.uids import COMPREHENSIVE_3D_SR
from worker.findings import Rejected
from worker.report import identity
from worker.report.secondary_capture import encode_sc
from worker.report.structured_report import encode_sr
from worker.settings import ReportSection

SETTINGS = ReportSection()
PIXELMED = Path("/usr/share/java/pixelmed.jar")


@pytest.fixture
def scored(read, find, ordinary):
    """A study with everything at once: two films, one set aside, one quarantined, something left open."""
    second = read(
        ordinary | {"SOPInstanceUID": b"1.2.826.0.1.3680043.8.498.1.1.2"}, open_questions=("ViewPosition",)
    )
    lateral = read(ordinary | {"SOPInstanceUID": b"1.2.3"}, reason=Reason.NOT_FRONTAL)
    report = {"SOPInstanceUID": b"1.2.4", "SeriesInstanceUID": b"1.2.5"}
    foreign = read(ordinary | report | {"SOPClassUID": COMPREHENSIVE_3D_SR.encode()}, reason=Reason.SOP_CLASS)
    lost = Rejected(sop_instance_uid="1.2.6", reason=Reason.DECODER_CRASHED, sentence="It died.")
    return find([(read(), 0.9), (second, 0.1)], (lateral, foreign), (lost,))


@pytest.fixture
def not_analysed(read, find):
    return find([], (read(reason=Reason.NOT_FRONTAL),))


def write(finding, folder: Path) -> tuple[Path, ...]:
    heatmaps = [encode_sc(finding, score, SETTINGS) for score in finding.scores]
    outputs = [encode_sr(finding, SETTINGS, heatmaps), *heatmaps]
    for output in outputs:
        (folder / f"{output.sop_instance_uid}.dcm").write_bytes(output.content)
    return tuple(folder / f"{output.sop_instance_uid}.dcm" for output in outputs)


def said(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=240, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["scored", "not_analysed"])
def test_dciodvfy_finds_no_error(program, request, tmp_path, kind):
    """David Clunie's validator has no objection to report and heatmaps."""
    dciodvfy = program("dciodvfy")
    for path in write(request.getfixturevalue(kind), tmp_path):
        text = said(dciodvfy, "-new", path)
        assert re.search("^(Comprehensive3DSR|SCImage)$", text, re.MULTILINE)
        assert "Error" not in text


def test_dciodvfy_objects_only_to_what_was_copied(program, header, read, find, tmp_path):
    """With any header, errors are those of the film's own identifiers, which are kept byte for byte."""
    dciodvfy = program("dciodvfy")
    copied = {dictionary_keyword(tag) for tag in identity.COPIED}
    for path in write(find([(read(header), 0.9)]), tmp_path):
        errors = [line for line in said(dciodvfy, "-new", path).splitlines() if line.startswith("Error")]
        named = [re.search(r"^Error - </(\w+)\(", line) for line in errors]
        assert all(match and match[1] in copied for match in named), errors


@pytest.mark.parametrize("kind", ["scored", "not_analysed"])
def test_dcmtk_reads_the_report(program, request, tmp_path, kind):
    """DCMTK shows the content tree without an error."""
    report = write(request.getfixturevalue(kind), tmp_path)[0]
    text = said(program("dsrdump"), "+Pl", report)
    assert "RESEARCH ONLY - NOT FOR DIAGNOSIS" in text
    assert not re.search("^[EWF]:", text, re.MULTILINE)


@pytest.mark.parametrize("kind", ["scored", "not_analysed"])
def test_pixelmed_finds_no_error(program, request, tmp_path, kind):
    """PixelMed's validator finds the template and nothing wrong with it.

    Its warnings "Content Item not in template" are about additions that TID 1500 allows (it is extensible):
    the heatmap's method, and the image that a remark is about.
    """
    java, jar = program("java"), program("pixelmed.jar", str(PIXELMED))
    limits = [f"-Djdk.xml.xpath{limit}=0" for limit in ("ExprGrpLimit", "ExprOpLimit", "TotalOpLimit")]
    # The first compiler only: it starts three times as fast.
    options = ["-Xss16m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *limits, "-cp", jar]
    report = write(request.getfixturevalue(kind), tmp_path)[0]
    text = said(java, *options, "com.pixelmed.validate.DicomSRValidator", report)
    assert "Found Root Template TID_1500" in text
    assert "IOD validation complete" in text
    assert "Error" not in text
