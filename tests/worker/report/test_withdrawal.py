"""Rejection notes and withdrawing reports, judged by others."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from io import BytesIO

import pytest
from pydicom import dcmread

from dicom_node import uids
from worker.ledger import SentObject
from worker.report.withdrawal import Why, Withdrawn, encode_rejection, encode_withdrawal
from worker.settings import ReportSection

STUDY = "1.2.3"
SETTINGS = ReportSection()


@pytest.fixture
def withdrawn(model, read, find, ordinary):
    reading = read(ordinary)
    from worker.report.identity import study_of

    objects = [
        SentObject(
            sop_class_uid=sop_class,
            sop_instance_uid=uids.derive_uid(name),
            series_instance_uid=uids.derive_uid("series", name),
            destinations=("pacs",),
        )
        for name, sop_class in (("sr", uids.COMPREHENSIVE_3D_SR), ("sc", uids.SECONDARY_CAPTURE))
    ]
    one = Withdrawn(
        study_instance_uid=study_of(reading.source),
        generation=1,
        input_set_hash="h",
        model=model,
        withdrawn_at=datetime(2026, 3, 1, tzinfo=UTC),
        objects=objects,
    )
    return one, reading.source


@pytest.fixture(params=["quality", "safety", "withdrawal"])
def document(request, withdrawn):
    one, source = withdrawn
    if request.param == "withdrawal":
        return encode_withdrawal(one, source, SETTINGS)
    return encode_rejection(one, source, SETTINGS, Why(request.param))


def test_it_names_every_object(document, withdrawn):
    """In its evidence and in its content."""
    ds = dcmread(BytesIO(document.content))
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    named = {
        r.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for r in s.ReferencedSOPSequence
    }
    assert named == {one.sop_instance_uid for one in withdrawn[0].objects}
    assert all(f"{uid}" in str(ds.ContentSequence) for uid in named)
    assert ds.StudyInstanceUID == withdrawn[0].study_instance_uid


def test_the_title_is_that_of_iocm(withdrawn):
    """(113001, DCM) or (113037, DCM)."""
    one, source = withdrawn
    for why, code in ((Why.QUALITY, "113001"), (Why.SAFETY, "113037")):
        ds = dcmread(BytesIO(encode_rejection(one, source, SETTINGS, why).content))
        (title,) = ds.ConceptNameCodeSequence
        assert (title.CodeValue, title.CodingSchemeDesignator) == (code, "DCM")
        assert (ds.SOPClassUID, ds.Modality) == (uids.KEY_OBJECT_SELECTION, "KO")


def test_the_report_before_is_the_predecessor(withdrawn):
    """A reader of documents knows that it takes the place of the first."""
    ds = dcmread(BytesIO(encode_withdrawal(*withdrawn, SETTINGS).content))
    (before,) = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert before.ReferencedSOPInstanceUID == withdrawn[0].objects[0].sop_instance_uid
    assert "WITHDRAWN" in ds.SeriesDescription


def test_dciodvfy_finds_no_error(program, document, tmp_path):
    """David Clunie's validator."""
    path = tmp_path / "document.dcm"
    path.write_bytes(document.content)
    done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_dcmtk_reads_it(program, document, tmp_path):
    """DCMTK understands the content tree."""
    path = tmp_path / "document.dcm"
    path.write_bytes(document.content)
    done = subprocess.run([program("dsrdump"), "+Pl", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "withdrawn" in done.stdout
