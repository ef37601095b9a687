"""Draining a real worker over a real Redis."""

from __future__ import annotations

import subprocess

from dicom_node.dispatch import Dispatcher
from dicom_node.spool import Spool
from tests.deploy.site import film, spool_film
from tests.integration.system import COVARIANCE
from worker.drain import DRAINED_EXIT
from worker.ledger import JobState


def drain(system, *options):
    command = [COVARIANCE, "--config", str(system.folder / "covariance.toml"), "drain", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_a_drained_worker_finishes_and_stays_down(make_system, eventually):
    """What it has is scored, what comes later waits, and its exit code says that it was drained."""
    system = make_system([])
    system.start("worker")
    log = system.programs["worker"].output
    eventually(lambda: "worker_ready" in log.read_text(), what="the worker is ready", seconds=120)
    spool, ring = Spool(system.settings.spool.path), Dispatcher(system.settings).ring
    spool.prepare()
    spool_film(spool, film("1.2.840.81"))
    ring("1.2.840.81")
    eventually(lambda: system.ledger.study("1.2.840.81"), what="the study is taken", seconds=60)
    done = drain(system)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All have ended" in done.stdout
    assert system.programs["worker"].process.wait(60) == DRAINED_EXIT
    (job,) = system.ledger.study("1.2.840.81").jobs
    assert job.state is JobState.DONE
    spool_film(spool, film("1.2.840.82"))
    ring("1.2.840.82")
    assert system.waiting_messages() == 1
    assert drain(system).returncode == 1  # nobody hears it
