"""Retention and identity with everything real: a PACS that has committed, and senders that send again."""

from __future__ import annotations

import json
import subprocess

import pytest

from dicom_node.errors import Reason
from tests.integration.system import COVARIANCE
from worker.ledger import Disposition
from worker.phantom import phantom_dataset


def film(salt: str, seed: int = 0, **changed: str):
    made = phantom_dataset(seed, salt=salt, rows=640, columns=512)
    for keyword, value in changed.items():
        setattr(made, keyword, value)
    return made


def sibling(first, number: int, **changed: str):
    """One more image of the same study and, unless told otherwise, patient."""
    same = {key: getattr(first, key) for key in ("StudyInstanceUID", "PatientID", "PatientBirthDate")}
    return film(first.StudyInstanceUID, number, **{**same, **changed})


@pytest.fixture(scope="module")
def destination(orthanc):
    return {"name": "orthanc", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}


@pytest.fixture
def run(make_system, destination, node_port):
    """`run(**sections)` starts a CoVariance whose PACS is Orthanc."""
    started = []

    def start(**sections):
        system = make_system([destination], port=node_port, **sections)
        started.append(system)
        system.start()
        return system

    yield start
    for system in started:
        system.stop()


def spooled(system, study: str) -> int:
    return len(list((system.folder / "spool" / "studies" / study).glob("*.dcm")))


def held(orthanc, study: str) -> list[str]:
    return sorted(orthanc.find(StudyInstanceUID=study))


def kinds(system, study: str) -> list[str]:
    record = system.ledger.study(study)
    return [event.kind for event in record.events] if record else []


def test_study_is_purged_held_and_scored_again(run, orthanc, eventually):
    """Committed films go; sent again they give no work; a late one is held until all of them are here."""
    system = run(retention={"enabled": True, "keep_days": 0.0})
    first = film("retention")
    study = first.StudyInstanceUID
    system.send(first)
    eventually(lambda: "purged" in kinds(system, study) and not spooled(system, study), what="the film goes")
    results = held(orthanc, study)
    assert len(results) == 2

    system.send(first)
    eventually(lambda: kinds(system, study).count("purged") == 2, what="the film goes once more")
    assert "claimed" not in kinds(system, study)[kinds(system, study).index("came_again") :]

    late = sibling(first, 1)
    system.send(late)
    image = system.wait_for_image(study, late.SOPInstanceUID)
    assert (image.disposition, image.reason) == (Disposition.QUARANTINED, Reason.FILE_PURGED)
    assert held(orthanc, study) == results
    assert spooled(system, study) == 1

    system.send(first)
    record = system.wait_for(study, generation=3)
    assert [one.disposition for one in record.images] == [Disposition.SCORED] * 2
    eventually(lambda: not spooled(system, study), what="both films go")
    assert system.ledger.verify().ok


def test_late_image_of_another_patient_from_another_sender(run, orthanc):
    """The result at the PACS stays, nothing new is sent, and `status` and `show` name the conflict."""
    system = run()
    first = film("identity")
    study = first.StudyInstanceUID
    system.send(first)
    system.wait_for(study)
    results = held(orthanc, study)
    stranger = sibling(first, 1, PatientBirthDate="19770707", PatientID="SOMEBODY-ELSE")
    system.send(stranger, calling="OTHERAE")
    image = system.wait_for_image(study, stranger.SOPInstanceUID)
    assert (image.calling_ae, image.reason) == ("OTHERAE", Reason.IDENTITY_CONFLICT)
    assert held(orthanc, study) == results
    shown = {name: said(system, *name.split()) for name in ("status", "status --json", f"show {study}")}
    assert [name for name, text in shown.items() if Reason.IDENTITY_CONFLICT not in text] == []
    assert "nothing is sent since" in shown[f"show {study}"]
    assert json.loads(shown["status --json"])["quarantined"] == {Reason.IDENTITY_CONFLICT: 1}


def said(system, *arguments: str) -> str:
    command = [COVARIANCE, "--config", str(system.folder / "covariance.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
