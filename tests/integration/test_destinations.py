"""Destinations as they differ: with commitment, with a query only, with neither, and unwilling."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from pydicom import dcmread

from deploy.pacs import StandInPacs
from worker.ledger import DeliveryState
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}


def destination(name: str, ae_title: str, port: int, verify: str) -> dict[str, object]:
    return {"name": name, "ae_title": ae_title, "host": "127.0.0.1", "port": port, "verify": verify}


def deliveries(system, study: str, name: str) -> list[DeliveryState]:
    record = system.ledger.study(study)
    outputs = [output for result in record.results for output in result.outputs] if record else []
    return [d.state for output in outputs for d in output.deliveries if d.destination == name]


@pytest.fixture(scope="module")
def delivered(make_system, orthanc, storescp, eventually):
    """A film whose results have reached Orthanc, which is asked by C-FIND, and storescp, which is not."""
    port, _ = storescp
    system = make_system(
        [
            destination("orthanc", "ORTHANC", orthanc.port, "find"),
            destination("dcmtk", "STORESCP", port, "none"),
        ]
    )
    system.start()
    film = phantom_dataset(21, salt="two destinations", **SMALL)
    system.send(film)
    expected = {"orthanc": [DeliveryState.VERIFIED] * 2, "dcmtk": [DeliveryState.STORED] * 2}
    for name, states in expected.items():
        eventually(
            lambda name=name, states=states: deliveries(system, film.StudyInstanceUID, name) == states,
            what=f"{name} has both objects, proven in its own way",
        )
    system.stop()
    return film


def test_each_destination_gets_every_result(delivered, orthanc, storescp):
    """Both destinations hold the same two objects, in the study of the film."""
    _, folder = storescp
    received = [dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    assert {one.StudyInstanceUID for one in received} == {delivered.StudyInstanceUID}
    held = {
        orthanc.rest(f"/instances/{instance}/simplified-tags")["SOPInstanceUID"]
        for instance in orthanc.find(StudyInstanceUID=delivered.StudyInstanceUID)
    }
    assert len(received) == 2
    assert {one.SOPInstanceUID for one in received} == held


def test_what_is_sent_passes_the_validator(delivered, storescp, program):
    """dciodvfy finds no error in the bytes that a destination got."""
    _, folder = storescp
    for file in folder.iterdir():
        found = subprocess.run(
            [program("dciodvfy"), "-new", file], capture_output=True, text=True, check=False
        )
        assert "Error" not in found.stderr


def digest_of_data_set(part10: bytes) -> str:
    """SHA-256 of what follows the file meta group, whose first element says how long it is (PS3.10 7.1)."""
    return hashlib.sha256(part10[144 + int.from_bytes(part10[140:144], "little") :]).hexdigest()


def test_results_survive_the_way_to_the_pacs_and_back(delivered, orthanc, storescp):
    """Orthanc gives back every byte of report and heatmap as it was sent, pixels included."""
    _, folder = storescp
    modalities = []
    for file in folder.iterdir():
        sent = dcmread(file)
        (held,) = orthanc.find(SOPInstanceUID=sent.SOPInstanceUID)
        assert digest_of_data_set(orthanc.file(held)) == digest_of_data_set(file.read_bytes())
        modalities.append(sent.Modality)
        if "PixelData" in sent:
            assert sent.pixel_array.shape == (sent.Rows, sent.Columns, 3)
            assert sent.pixel_array.std() > 10
    assert sorted(modalities) == ["OT", "SR"]


def test_echoscu_gets_its_answer(make_system, program):
    """DCMTK's C-ECHO succeeds, and a wrong called AE title is told so."""
    system = make_system([])
    system.start("node")
    command = [program("echoscu"), "-v", "127.0.0.1", str(system.port)]
    assert subprocess.run([*command, "-aec", "COVARIANCE"], check=False).returncode == 0
    refused = subprocess.run([*command, "-aec", "SOMEBODY"], capture_output=True, text=True, check=False)
    assert "Called AE Title Not Recognized" in refused.stdout + refused.stderr


@pytest.fixture
def refused(request, make_system, node_port, tmp_path):
    """A study whose results the PACS answers with the status `request.param`; the system; that PACS."""
    with StandInPacs(tmp_path, peers={"COVARIANCE": ("127.0.0.1", node_port)}) as pacs:
        pacs.refuse_with = request.param
        system = make_system([destination("pacs", "STANDIN", pacs.port, "commitment")], port=node_port)
        system.start()
        film = phantom_dataset(22, salt=f"refused with {request.param}", **SMALL)
        system.send(film)
        yield film.StudyInstanceUID, system, pacs
        system.stop()


@pytest.mark.parametrize("refused", [0xC000], indirect=True, ids=["cannot understand"])
def test_permanent_refusal_is_set_aside_and_can_be_retried(refused, eventually):
    """A PACS that cannot understand an object is not asked for ever; after it is mended, `retry` delivers."""
    study, system, pacs = refused
    given_up = [DeliveryState.FAILED] * 2
    eventually(lambda: deliveries(system, study, "pacs") == given_up, what="both objects are set aside")
    assert pacs.held(study) == []
    pacs.refuse_with = None
    assert system.ledger.retry(study) == 2
    system.wait_for(study)
    assert len(pacs.held(study)) == 2


@pytest.mark.parametrize("refused", [0xA700], indirect=True, ids=["out of resources"])
def test_transient_refusal_is_tried_until_it_succeeds(refused, eventually):
    """A PACS that is out of resources gets the same objects again, more often than a permanent no."""
    study, system, pacs = refused

    def attempts() -> list[int]:
        record = system.ledger.study(study)
        outputs = [o for result in record.results for o in result.outputs] if record else []
        return [d.attempts for output in outputs for d in output.deliveries]

    patience = system.settings.delivery.permanent_attempts
    eventually(lambda: attempts() and min(attempts()) > patience, what="more tries than a no would get")
    pacs.refuse_with = None
    system.wait_for(study)
