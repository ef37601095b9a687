"""Every study that waits is rung for, and no queue is flooded."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node import uids
from dicom_node.dispatch import Dispatcher
from dicom_node.lanes import Lane
from dicom_node.settings import AssemblySection
from tests.dicom_node.build import arrival, encoded, eventually, film
from tests.worker.build import settings_in
from tests.worker.ledger.conftest import spooled
from worker.reconcile import Reconciler

STUDY = "1.2.840.1"


@pytest.fixture(scope="module")
def broker(program, tmp_path_factory):
    """A Redis on a socket of its own; its URL."""
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    command = [program("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder) as process:
        eventually(path.exists)
        yield f"redis+socket://{path}"
        process.terminate()


@pytest.fixture
def dispatcher(broker, tmp_path):
    dispatcher = Dispatcher(settings_in(tmp_path, queue={"url": broker, "prefix": f"{tmp_path.name}:"}))
    yield dispatcher
    dispatcher.close()


@pytest.fixture
def reconciler(spool, ledger, dispatcher, clock):
    assembly = AssemblySection(quiet_seconds=5.0, cap_seconds=20.0)
    return Reconciler(assembly=assembly, spool=spool, ledger=ledger, dispatcher=dispatcher, clock=clock)


def receive(spool, study=STUDY, lane=Lane.ROUTINE):
    """One more image of the study in the spool."""
    instance, _ = spool.store(
        encoded(film(StudyInstanceUID=study)),
        transfer_syntax_uid=uids.EXPLICIT_VR_LITTLE_ENDIAN,
        arrival=replace(arrival(), lane=lane),
    )
    return instance


def finish(ledger, spool, study=STUDY):
    """Register what the spool holds of the study, and have its job under way."""
    ledger.register(study, spool.instances(study))
    assert ledger.claim(study, worker="w1", lease=timedelta(days=1), maximum_attempts=3)


def test_study_is_rung_for_when_it_is_complete(reconciler, spool, dispatcher, clock):
    """What nobody announced is announced once it has been quiet, not before."""
    receive(spool)
    assert reconciler.step() == 0
    clock.pass_by(7)
    assert reconciler.step() == 1
    assert dispatcher.depth() == 1


def test_ready_job_is_rung_for(reconciler, ledger, clock):
    """A job that was given back is announced when its pause is over."""
    ledger.register(STUDY, [spooled(STUDY, f"{STUDY}.1")])
    claim = ledger.claim(STUDY, worker="w1", lease=timedelta(days=1), maximum_attempts=3)
    ledger.release(claim, retry_in=timedelta(seconds=10), sentence="The disk is full.")
    assert reconciler.step() == 0
    clock.pass_by(10)
    assert reconciler.step() == 1


def test_study_that_is_worked_on_is_left_alone(reconciler, spool, ledger, clock):
    """A registered study with a claimed job is not announced, at any look."""
    receive(spool)
    finish(ledger, spool)
    clock.pass_by(60)
    assert [reconciler.step(), reconciler.step()] == [0, 0]


def test_late_image_with_the_same_time_is_seen(reconciler, spool, ledger, clock):
    """An image that shares its file time with the one before is not overlooked."""
    first = receive(spool)
    finish(ledger, spool)
    clock.pass_by(60)
    assert reconciler.step() == 0
    late, times = receive(spool), first.path.stat()
    os.utime(late.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert reconciler.step() == 1


def test_late_images_are_waited_for_as_first_ones_are(reconciler, spool, ledger, clock):
    """A study of long ago that gets images one by one is rung for after the cap, and not at each of them."""
    old = receive(spool)
    finish(ledger, spool)
    os.utime(old.path, (old.path.stat().st_atime - 3600,) * 2)
    clock.pass_by(60)
    assert reconciler.step() == 0
    rung = []
    for _ in range(8):
        late = receive(spool)
        os.utime(late.path, (clock().timestamp(),) * 2)
        rung.append(reconciler.step())
        clock.pass_by(3)
    assert rung == [0] * 7 + [1]


def test_queue_that_never_empties_starves_no_study(reconciler, spool, dispatcher, clock):
    """Behind other messages a study is rung for after a while, and once a minute."""
    dispatcher.ring("1.2.3")
    receive(spool)
    clock.pass_by(20)
    assert reconciler.step() == 0
    clock.pass_by(20)
    assert [reconciler.step(), reconciler.step()] == [1, 0]
    clock.pass_by(61)
    assert reconciler.step() == 1


def test_backlog_is_rung_for_in_parts(reconciler, ledger, dispatcher, clock):
    """A look at a long backlog adds a bounded number of messages; the next look goes on."""
    dispatcher.ring("1.2.3")
    for number in range(60):
        ledger.register(f"1.2.{number + 10}", [spooled(f"1.2.{number + 10}", f"1.2.{number + 10}.1")])
    clock.pass_by(40)
    assert [reconciler.step(), reconciler.step(), reconciler.step()] == [50, 10, 0]


@pytest.mark.parametrize("lane", Lane)
def test_a_study_is_rung_for_in_its_lane(lane, reconciler, spool, ledger, dispatcher, clock):
    """As the spool has it before it is registered, and as the ledger has it after."""
    receive(spool, "1.2.5", lane)
    receive(spool, "1.2.6", lane)
    ledger.register("1.2.6", spool.instances("1.2.6"))
    clock.pass_by(7)
    assert reconciler.step() == 2
    assert dispatcher.depths() == {one: 2 if one is lane else 0 for one in Lane}


def test_a_late_image_changes_the_lane_of_a_study_that_waits(reconciler, spool, dispatcher, clock):
    """What was read of a study is read again when another image has come."""
    receive(spool, STUDY, Lane.BACKFILL)
    clock.pass_by(7)
    assert reconciler.backlog()[Lane.BACKFILL].studies == 0
    reconciler.step()
    assert reconciler.backlog()[Lane.BACKFILL].studies == 1
    receive(spool, STUDY, Lane.STAT)
    clock.pass_by(7)
    reconciler.step()
    assert dispatcher.depths() == {Lane.STAT: 1, Lane.ROUTINE: 0, Lane.BACKFILL: 1}
    assert reconciler.backlog()[Lane.STAT].studies == 1


def test_an_urgent_study_is_rung_for_beside_a_backlog(reconciler, spool, dispatcher, clock):
    """Messages of another lane do not make it wait."""
    dispatcher.ring("1.2.3", Lane.BACKFILL)
    receive(spool, STUDY, Lane.STAT)
    clock.pass_by(7)
    assert reconciler.step() == 1


def test_a_backlog_that_waits_for_hours_does_not_grow(reconciler, ledger, dispatcher, clock):
    """With a message for each of its studies there, only some more are ever added."""
    for number in range(120):
        study = f"1.2.{number + 10}"
        ledger.register(study, [replace(spooled(study, f"{study}.1"), lane=Lane.BACKFILL)])
    assert reconciler.step() == 120
    for _ in range(30):
        clock.pass_by(70)
        reconciler.step()
    assert dispatcher.depth() == 170


def test_emptied_queue_is_filled_at_once(reconciler, spool, broker, dispatcher, clock):
    """When the broker has lost its messages, studies that were rung for are rung for again."""
    import redis

    receive(spool)
    clock.pass_by(7)
    reconciler.step()
    with redis.Redis(unix_socket_path=broker.removeprefix("redis+socket://")) as client:
        client.flushall()
    assert reconciler.step() == 1


def test_nothing_is_rung_without_a_broker(spool, ledger, clock, tmp_path):
    """Where the broker is away a look ends without an error."""
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'nowhere'}"})
    receive(spool)
    clock.pass_by(60)
    away = Dispatcher(settings)
    one = Reconciler(assembly=settings.assembly, spool=spool, ledger=ledger, dispatcher=away, clock=clock)
    assert one.step() == 0
