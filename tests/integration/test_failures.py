"""What dies comes back, and every study ends committed, once."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url

from dicom_node.errors import Reason
from worker.ledger import Disposition, JobState
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}


@pytest.fixture
def system(make_system, orthanc, node_port):
    """A CoVariance that is not running yet; Orthanc is its destination."""
    destination = {
        "name": "orthanc",
        "ae_title": "ORTHANC",
        "host": "127.0.0.1",
        "port": orthanc.port,
        "commitment_timeout": 3.0,
    }
    system = make_system([destination], port=node_port)
    yield system
    system.stop()


def reports(orthanc, study: str) -> int:
    """How many SRs of ours the PACS holds in the study."""
    found = [s for s in orthanc.series(study) if s["MainDicomTags"]["Modality"] == "SR"]
    return sum(len(series["Instances"]) for series in found)


def films(salt: str, number: int):
    return [phantom_dataset(seed, salt=salt, **SMALL) for seed in range(number)]


def test_worker_killed_in_mid_job(system, orthanc, eventually):
    """SIGKILL a worker while it holds claims: the next one takes them over, and each study has one SR."""
    system.start()
    sent = films("killed", 6)
    system.send(*sent)
    eventually(lambda: system.ledger.status().jobs[JobState.CLAIMED], what="a job is claimed")
    system.programs["worker"].kill()
    assert system.ledger.status().jobs[JobState.DONE] < len(sent)
    system.start("worker")
    records = [system.wait_for(film.StudyInstanceUID) for film in sent]
    assert max(job.attempt for record in records for job in record.jobs) == 2
    assert [reports(orthanc, film.StudyInstanceUID) for film in sent] == [1] * len(sent)


def children(pid: int) -> list[int]:
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for one in lists for child in one.split()]


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def stop_outside_transactions(pid: int, database: str) -> None:
    """SIGSTOP a process at a moment at which it does not keep everybody else out of the database."""
    with closing(sqlite3.connect(database, timeout=2.0, isolation_level=None)) as probe:
        for _ in range(20):
            os.kill(pid, signal.SIGSTOP)
            try:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
            else:
                return
    pytest.fail("the worker never lets go of the database")


def test_stopped_worker_loses_its_claim(system, orthanc, eventually):
    """SIGSTOP a worker past its lease: what it then wants to record is refused as stale, and not recorded."""
    system.start()
    worker = system.programs["worker"]
    pid = worker.process.pid
    # Not earlier: a decoder that is stopped between fork and exec keeps its worker from ever starting.
    eventually(lambda: "worker_ready" in worker.output.read_text(), what="the worker is ready")
    decoders = children(pid)
    assert len(decoders) == system.settings.worker.decoders
    second = replace(worker, output=worker.output.with_name("second-worker.log"), process=None)
    # It cannot get further than its claim while nobody reads the film for it.
    signal_all(decoders, signal.SIGSTOP)
    try:
        (film,) = films("stopped", 1)
        system.send(film)
        eventually(lambda: system.ledger.status().jobs[JobState.CLAIMED], what="the job is claimed")
        stop_outside_transactions(pid, make_url(system.settings.database.url).database)
        second.start()
        record = system.wait_for(film.StudyInstanceUID)
        assert record.jobs[0].fence == 2
    finally:
        signal_all([*decoders, pid], signal.SIGCONT)
    try:
        eventually(lambda: '"outcome": "stale"' in worker.output.read_text(), what="the first is refused")
    finally:
        second.stop()
    assert len(system.ledger.study(film.StudyInstanceUID).results) == 1
    assert reports(orthanc, film.StudyInstanceUID) == 1


def test_flushed_broker_loses_nothing(system, orthanc, eventually):
    """FLUSHALL while every message still waits: the reconciler rings again."""
    system.start("node", "deliver")
    sent = films("flushed", 3)
    system.send(*sent)
    eventually(system.waiting_messages, what="the node has rung")
    system.flush_broker()
    system.start("worker")
    for film in sent:
        system.wait_for(film.StudyInstanceUID)
        assert reports(orthanc, film.StudyInstanceUID) == 1


def test_node_receives_while_everything_else_is_down(system):
    """With no worker, no deliverer and no message, what was received is scored once they are there."""
    system.start("node")
    sent = films("alone", 2)
    system.send(*sent)
    system.programs["node"].stop()
    system.flush_broker()
    system.start()
    for film in sent:
        system.wait_for(film.StudyInstanceUID)


def test_pacs_away_for_a_while(system, orthanc, eventually):
    """Results wait for a PACS that is away and reach it, once, when it is back."""
    orthanc.program.stop()
    system.start()
    sent = films("away", 3)
    system.send(*sent)

    def tried() -> bool:
        records = [system.ledger.study(film.StudyInstanceUID) for film in sent]
        outputs = [o for record in records if record for result in record.results for o in result.outputs]
        return bool(outputs) and all(d.attempts for output in outputs for d in output.deliveries)

    eventually(tried, what="every delivery was tried in vain")
    orthanc.start()
    for film in sent:
        system.wait_for(film.StudyInstanceUID)
        assert reports(orthanc, film.StudyInstanceUID) == 1


def test_what_cannot_be_scored_is_quarantined_and_blocks_nobody(system):
    """A film without its pixels ends quarantined with a reason; the study behind it is scored."""
    system.start()
    broken, sound = films("broken", 2)
    broken.PixelData = broken.PixelData[:1000]
    system.send(broken, sound)
    image = system.wait_for_image(broken.StudyInstanceUID, broken.SOPInstanceUID)
    assert (image.disposition, image.reason) == (Disposition.QUARANTINED, Reason.PIXELS_INCONSISTENT)
    system.wait_for(sound.StudyInstanceUID)
    assert system.ledger.status().quarantined == {Reason.PIXELS_INCONSISTENT: 1}


def test_two_patients_in_one_study_are_not_reported(system, orthanc):
    """When the images of a study name different patients, nothing is written back and the study says so."""
    system.start()
    one, other = films("two patients", 2)
    other.StudyInstanceUID = one.StudyInstanceUID
    system.send(one, other)
    image = system.wait_for_image(one.StudyInstanceUID, one.SOPInstanceUID)
    assert (image.disposition, image.reason) == (Disposition.QUARANTINED, Reason.IDENTITY_CONFLICT)
    assert orthanc.series(one.StudyInstanceUID) == []


def test_other_content_under_the_same_uid_is_kept_and_flagged(system, eventually):
    """The first content under a UID is scored; the second is kept, quarantined, and never scored."""
    system.start()
    (film,) = films("conflict", 1)
    system.send(film)
    system.wait_for(film.StudyInstanceUID)
    (other,) = films("conflict", 1)
    other.PixelData = bytes(reversed(other.PixelData))
    system.send(other)

    image = eventually(lambda: second(system, film), what="the second content is registered")
    assert (image.disposition, image.reason) == (Disposition.QUARANTINED, Reason.CONFLICTING_CONTENT)
    assert len(system.ledger.study(film.StudyInstanceUID).results) == 1


def second(system, film):
    images = system.ledger.study(film.StudyInstanceUID).images
    return images[1] if len(images) == 2 else None
