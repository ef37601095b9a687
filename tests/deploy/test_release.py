"""`covariance release`: who waits is scored now, on record, and who does not is told why."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dicom_node.dispatch import Dispatcher
from dicom_node.errors import Reason
from dicom_node.lanes import Lane
from dicom_node.spool import Spool
from tests.deploy.site import film, settings_of, spool_film
from tests.integration.system import Program, accepts, eventually, free_port
from tests.worker.ledger.conftest import finding_of
from worker.ledger import Kind, open_ledger
from worker.settings import Settings

STUDY = "1.2.840.75"
LEASE = timedelta(minutes=5)


@pytest.fixture
def place(tmp_path):
    """Settings without a broker, an empty ledger and a spool with one film."""
    settings = settings_of(tmp_path, {})
    open_ledger(settings, migrate=True).close()
    spool = Spool(settings.spool.path)
    spool.prepare()
    spool_film(spool, film(STUDY))
    return settings


@pytest.fixture
def release(invoke, place):
    """`release(study)` runs the command; its exit code and what it said."""

    def run(study: str = STUDY) -> tuple[int, str]:
        done = invoke("--config", "covariance.toml", "release", study)
        return done.exit_code, done.output

    return run


def claimed(ledger):
    claim = ledger.claim(STUDY, worker="w", lease=LEASE, maximum_attempts=3)
    assert claim is not None
    return claim


def test_a_study_in_its_quiet_period_is_released(place, release):
    """No worker knows it yet: it is registered, on record, and the reconciler finds it without a broker."""
    code, said = release()
    assert (code, "Generation 1 with 1 images is released; the broker is away" in said) == (0, True), said
    with open_ledger(place, migrate=False) as ledger:
        assert list(ledger.announceable()) == [STUDY]
        kinds = [event.kind for event in ledger.study(STUDY).events]
        assert kinds == [Kind.REGISTERED, Kind.HASTENED]
        assert ledger.verify().ok


def test_the_next_worker_hears_of_it(release, tmp_path, program, monkeypatch):
    """With a broker there is one message, where urgent ones are, and the answer says so."""
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    broker = Program([*command, "--save", ""], tmp_path / "redis.log").start()
    try:
        eventually(lambda: accepts(port), what="Redis listens")
        monkeypatch.setenv("COVARIANCE_QUEUE__URL", f"redis://127.0.0.1:{port}/0")
        code, said = release()
        assert (code, said) == (
            0,
            "Generation 1 with 1 images is released; the next free worker takes it.\n",
        )
        queue = {"url": f"redis://127.0.0.1:{port}/0"}
        depths = Dispatcher(Settings(queue=queue)).depths()
        assert depths == {Lane.STAT: 1, Lane.ROUTINE: 0, Lane.BACKFILL: 0}
    finally:
        broker.stop()


def test_a_study_that_pauses_is_released(place, release):
    """Something it needs was away: it does not wait for the end of its pause."""
    release()
    with open_ledger(place, migrate=False) as ledger:
        ledger.release(claimed(ledger), retry_in=timedelta(hours=1), sentence="The disk is away.")
        assert not ledger.announceable()
        assert release()[0] == 0
        assert list(ledger.announceable()) == [STUDY]


def test_a_study_that_is_claimed_is_left_alone(place, release):
    """Exit code 1, and nothing on record."""
    release()
    with open_ledger(place, migrate=False) as ledger:
        claimed(ledger)
        assert release() == (1, "covariance: A worker has it in hand.\n")
        assert [event.kind for event in ledger.study(STUDY).events].count(Kind.HASTENED) == 1


def test_a_study_that_was_set_aside_is_not_released(place, release):
    """Its reason is named, and the command that it takes."""
    release()
    with open_ledger(place, migrate=False) as ledger:
        ledger.quarantine(claimed(ledger), Reason.DECODER_TIMEOUT, "It took too long.")
        code, said = release()
        assert (code, "(DECODER_TIMEOUT): `covariance quarantine release`" in said) == (1, True), said


@pytest.mark.parametrize("study", ["1.2.3", "../../etc", ""])
def test_an_unknown_study_is_said_to_be(release, study):
    """A name that is no UID is one of which nothing has come."""
    assert release(study) == (1, "covariance: No image of this study has come.\n")


def test_a_study_that_is_done_is_not_released(place, release):
    """It says where its result is."""
    release()
    with open_ledger(place, migrate=False) as ledger:
        claim = claimed(ledger)
        (image,) = claim.instances
        ledger.finish_without_result(claim, finding_of(claim, rejected=[image.sop_instance_uid]))
        code, said = release()
        assert (code, "It is done" in said) == (1, True), said
