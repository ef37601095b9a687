"""Nobody on the way of a study waits for the next look of a loop."""

from __future__ import annotations

import redis

from deploy.pacs import StandInPacs
from tests.deploy.site import film
from tests.integration.system import free_port

STUDY = "1.2.840.95"


def test_a_study_comes_to_its_proof_without_a_look(make_system, eventually, tmp_path):
    """With an hour between two looks, a result is sent when recorded, and proven when reported."""
    port = free_port()
    with StandInPacs(tmp_path / "pacs", peers={"COVARIANCE": ("127.0.0.1", port)}) as pacs:
        destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
        system = make_system([destination], port=port, delivery={"poll_seconds": 3600.0})
        system.start("node", "deliver")
        bell = f"{system.settings.queue.prefix}bell".encode()
        with redis.Redis(port=system.redis_port) as client:
            heard = lambda: dict(client.pubsub_numsub(bell))[bell] == 1  # noqa: E731
            eventually(heard, what="the deliverer listens")
        system.start("worker")
        system.send(film(STUDY))
        system.wait_for(STUDY)
