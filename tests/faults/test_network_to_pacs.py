"""What networks do between us and a real Orthanc, on the way there and on the way of its reports back."""

from __future__ import annotations

import pytest

from tests.faults import proxy
from tests.faults.proxy import Proxy
from tests.integration.conftest import accepts
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}
IN_MID_PDU = 20_000
THERE = {
    "reset in mid-PDU": proxy.reset_after(IN_MID_PDU),
    "black hole": proxy.black_hole,
    "black hole in mid-PDU": proxy.black_hole_after(IN_MID_PDU),
    "response lost": proxy.STORE_RESPONSE_LOST,
    "1 byte/s": proxy.trickle,
}
BACK = {
    "reset in mid-PDU": proxy.reset_after(250),
    "black hole": proxy.black_hole,
    "response lost": proxy.REPORT_RESPONSE_LOST,
    "1 byte/s": proxy.trickle,
}


@pytest.fixture(scope="module")
def system(make_system, orthanc, node_port):
    """A CoVariance that runs, with a proxy before Orthanc and one before its own node."""
    with Proxy(orthanc.port) as there:
        destination = {
            "name": "orthanc",
            "ae_title": "ORTHANC",
            "host": "127.0.0.1",
            "port": there.port,
            "commitment_timeout": 3.0,
        }
        system = make_system([destination], node={"network_timeout": 2.0}, delivery={"timeout": 2.0})
        with Proxy(system.port, port=node_port) as back:
            system.start()
            yield system, there, back
            system.stop()


def attempts(system, film):
    record = system.ledger.study(film.StudyInstanceUID)
    outputs = [output for result in record.results for output in result.outputs] if record else []
    return [delivery.attempts for output in outputs for delivery in output.deliveries]


def held(orthanc, film):
    """Modality of every object of ours that Orthanc holds of the study."""
    found = orthanc.series(film.StudyInstanceUID)
    return sorted(one["MainDicomTags"]["Modality"] for one in found for _ in one["Instances"])


@pytest.mark.parametrize("fault", THERE)
def test_results_survive_the_way_there(system, orthanc, eventually, fault):
    """Whatever the network did, after it the PACS holds one SR and one heatmap, and has committed to them."""
    running, there, _ = system
    film = phantom_dataset(31, salt=f"there {fault}", **SMALL)
    there.fault = THERE[fault]
    running.send(film)
    eventually(lambda: any(attempts(running, film)), what="a delivery was tried in vain")
    there.heal()
    running.wait_for(film.StudyInstanceUID)
    assert held(orthanc, film) == ["OT", "SR"]
    assert running.ledger.verify().ok


@pytest.mark.parametrize("fault", BACK)
def test_proof_survives_the_way_back(system, orthanc, eventually, fault):
    """A report that the network kept from us, or us from acknowledging, is had in the end."""
    running, _, back = system
    film = phantom_dataset(32, salt=f"back {fault}", **SMALL)
    back.fault, before = BACK[fault], back.ended
    running.send(film)
    eventually(lambda: back.ended > before, what="the PACS has reported, and was cut off")
    assert accepts(running.port)
    back.heal()
    running.wait_for(film.StudyInstanceUID)
    assert held(orthanc, film) == ["OT", "SR"]
