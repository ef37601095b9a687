"""The heartbeat study, short of the whole way (which tests/deploy/test_monitoring.py goes)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dicom_node.errors import Retryable
from dicom_node.server import StorageServer
from dicom_node.spool import Spool
from tests.integration.system import free_port
from tests.worker.build import Clock, settings_in
from tests.worker.ledger.conftest import finding_of
from worker.heartbeat import PATIENT_ID, Heartbeat, HeartbeatUids, heartbeat_age, heartbeat_uids
from worker.ledger import Recorded, open_ledger


@pytest.fixture
def settings(tmp_path):
    return settings_in(
        tmp_path,
        node={"port": free_port()},
        heartbeat={"every_minutes": 5, "keep_hours": 1},
        delivery={"timeout": 5.0},
    )


@pytest.fixture
def spool(settings):
    spool = Spool(settings.spool.path)
    spool.prepare()
    return spool


@pytest.fixture
def node(settings, spool):
    """A real listener over the spool."""
    server = StorageServer(settings, spool, lambda _: None)
    server.start()
    yield server
    server.stop()


def test_only_the_site_can_make_one():
    """A film under the same study, or of another site's key, is none; nor is one beside the beat's own."""
    own, other = HeartbeatUids(b"a"), HeartbeatUids(b"b")
    study = own.study(7)
    assert own.own(study, [own.image(study)])
    assert not other.own(study, [own.image(study)])
    assert not own.own(study, [own.image(study), "1.2.3"])
    assert not own.own(study, ["1.2.3"])
    assert own.study(7) == HeartbeatUids(b"a").study(7) != own.study(8)


def test_it_is_sent_once_a_period_and_its_age_is_known(settings, spool, node, tmp_path):
    """Over real C-STORE, once, with the reserved patient; young once recorded; its film goes in time."""
    from pydicom import dcmread

    clock = Clock()
    with open_ledger(settings, migrate=True, clock=clock) as ledger:
        heartbeat = Heartbeat(settings, ledger, clock=clock)
        heartbeat.step()
        heartbeat.step()
        (study,) = [one.study_instance_uid for one in spool.studies()]
        (instance,) = spool.instances(study)
        assert dcmread(instance.path).PatientID == PATIENT_ID
        assert instance.calling_ae == settings.heartbeat.calling_ae
        assert heartbeat_uids(settings).own(study, [instance.sop_instance_uid])
        assert heartbeat_age(settings, ledger) is None
        ledger.register(study, [instance])
        claim = ledger.claim(study, worker="w", lease=timedelta(minutes=1), maximum_attempts=3)
        assert ledger.record(claim, finding_of(claim), [], []) is Recorded.RECORDED
        assert heartbeat_age(settings, ledger) < 60
        assert ledger.leaving(limit=10) == []
        clock.pass_by(2 * 3600)
        Heartbeat(settings, ledger, clock=clock).step()
        assert [one.path for one in ledger.leaving(limit=10)] == [instance.path]


def test_a_node_that_is_away_is_said(settings, tmp_path):
    """Where nobody listens, the step fails in one sentence and is taken again."""
    with (
        open_ledger(settings, migrate=True) as ledger,
        pytest.raises(Retryable, match="did not reach our node"),
    ):
        Heartbeat(settings, ledger).step()
