"""Destinations as they differ: with commitment, with a query only, with neither, and unwilling."""

from __future__ import annotations

import subprocess

import pytest
from pydicom import dcmread

from deploy.pacs import StandInPacs
from worker.ledger import DeliveryState
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}


def destination(name: str, ae_title: str, port: int, verify: str) -> dict[str, object]:
    return {"name": name, "ae_title": ae_title, "host": "127.0.0.1", "port": port, "verify": verify}


@pytest.fixture
def storescp(start_program, free_port, program, tmp_path):
    """DCMTK's receiver, and the folder that it fills."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    port = free_port()
    start_program([program("storescp"), "-od", str(folder), "-aet", "STORESCP", str(port)], port=port)
    return port, folder


def deliveries(system, study: str, name: str) -> list[DeliveryState]:
    record = system.ledger.study(study)
    outputs = [output for result in record.results for output in result.outputs] if record else []
    return [d.state for output in outputs for d in output.deliveries if d.destination == name]


def test_each_destination_is_proven_in_its_own_way(make_system, orthanc, storescp, eventually, program):
    """Orthanc is asked by C-FIND for what it holds; storescp proves nothing, and stored is the end."""
    port, folder = storescp
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
            what=f"{name} has both objects",
        )
    for file in folder.iterdir():
        assert dcmread(file).StudyInstanceUID == film.StudyInstanceUID
        found = subprocess.run(
            [program("dciodvfy"), "-new", file], capture_output=True, text=True, check=False
        )
        assert "Error" not in found.stderr
    assert len(list(folder.iterdir())) == 2


def test_echoscu_gets_its_answer(make_system, program):
    """DCMTK's C-ECHO succeeds, and a wrong called AE title is told so."""
    system = make_system([])
    system.start("node")
    command = [program("echoscu"), "-v", "127.0.0.1", str(system.port)]
    assert subprocess.run([*command, "-aec", "COVARIANCE"], check=False).returncode == 0
    refused = subprocess.run([*command, "-aec", "SOMEBODY"], capture_output=True, text=True, check=False)
    assert "Called AE Title Not Recognized" in refused.stdout + refused.stderr


def test_permanent_refusal_is_set_aside_and_can_be_retried(make_system, node_port, tmp_path, eventually):
    """A PACS that cannot understand an object is not asked for ever; after it is mended, `retry` delivers."""
    with StandInPacs(tmp_path, peers={"COVARIANCE": ("127.0.0.1", node_port)}) as pacs:
        pacs.refuse_with = 0xC000
        system = make_system([destination("pacs", "STANDIN", pacs.port, "commitment")], port=node_port)
        system.start()
        film = phantom_dataset(22, salt="refused", **SMALL)
        system.send(film)
        study = film.StudyInstanceUID
        given_up = [DeliveryState.FAILED] * 2
        eventually(lambda: deliveries(system, study, "pacs") == given_up, what="both objects are set aside")
        assert pacs.held(study) == []
        pacs.refuse_with = None
        assert system.ledger.retry(study) == 2
        system.wait_for(study)
        assert len(pacs.held(study)) == 2
        system.stop()


def test_transient_refusal_is_tried_until_it_succeeds(make_system, node_port, tmp_path, eventually):
    """A PACS that is out of resources (A700) gets the same objects again, more often than a permanent no."""
    with StandInPacs(tmp_path, peers={"COVARIANCE": ("127.0.0.1", node_port)}) as pacs:
        pacs.refuse_with = 0xA700
        system = make_system([destination("pacs", "STANDIN", pacs.port, "commitment")], port=node_port)
        system.start()
        film = phantom_dataset(23, salt="full", **SMALL)
        system.send(film)
        study = film.StudyInstanceUID

        def attempts() -> list[int]:
            record = system.ledger.study(study)
            outputs = [o for result in record.results for o in result.outputs] if record else []
            return [d.attempts for output in outputs for d in output.deliveries]

        patience = system.settings.delivery.permanent_attempts
        eventually(lambda: attempts() and min(attempts()) > patience, what="more tries than a no would get")
        pacs.refuse_with = None
        system.wait_for(study)
        system.stop()
