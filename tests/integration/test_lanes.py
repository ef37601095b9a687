"""A backlog and an urgent study, through real node, Redis and worker."""

from __future__ import annotations

import json

import pytest
import redis

from dicom_node.dispatch import QUEUES, Dispatcher
from dicom_node.lanes import Lane
from tests.deploy.site import film
from worker.ledger import JobState

RULES = [
    {"lane": "stat", "procedure_priority": "STAT"},
    {"lane": "backfill", "calling_ae": "ARCHIVE"},
]
BACKLOG = [f"1.2.840.90.{number}" for number in range(6)]
ROUTINE, URGENT = "1.2.840.91", "1.2.840.92"


def as_sections(backfill_share=0.5):
    rules = ", ".join(
        "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in rule.items()) + " }"
        for rule in RULES
    )
    return f"[lanes]\nrules = [{rules}]\nbackfill_share = {backfill_share}\n"


def system_with_lanes(make_system, **sections):
    system = make_system([], **sections)
    with (system.folder / "covariance.toml").open("a") as file:
        file.write(as_sections())
    return system


def send_all(system):
    """The backlog, then a study of the day, and an urgent one last."""
    for number, study in enumerate(BACKLOG):
        system.send(film(study, number), calling="ARCHIVE")
    system.send(film(ROUTINE), calling="CR1")
    urgent = film(URGENT)
    urgent.RequestedProcedurePriority = "STAT"
    system.send(urgent, calling="CR1")


def ended(system):
    jobs = {
        uid: record.jobs[-1] for uid in (*BACKLOG, ROUTINE, URGENT) if (record := system.ledger.study(uid))
    }
    return len(jobs) == len(BACKLOG) + 2 and all(job.state is JobState.DONE for job in jobs.values()) and jobs


def told(system):
    """Claims and results of all studies, in the order of the audit trail."""
    events = [
        (event.seq, event.kind, uid)
        for uid in (*BACKLOG, ROUTINE, URGENT)
        for event in system.ledger.study(uid).events
        if event.kind in ("claimed", "recorded")
    ]
    return [(kind, uid) for _, kind, uid in sorted(events)]


@pytest.mark.parametrize("places", [1, 2])
def test_an_urgent_study_goes_before_a_backlog_that_still_ends(make_system, eventually, places):
    """Sent last, it is claimed first; backfill never has more than its share, and all of it is scored."""
    system = system_with_lanes(make_system, worker={"concurrency": places})
    system.start("node")
    send_all(system)
    depths = Dispatcher(system.settings).depths
    waiting = {Lane.STAT: 1, Lane.ROUTINE: 1, Lane.BACKFILL: len(BACKLOG)}
    eventually(lambda: depths() == waiting, what="every study waits in its lane")
    system.start("worker")
    jobs = eventually(lambda: ended(system), what="every study is scored", seconds=120)
    assert jobs[URGENT].lane is Lane.STAT
    assert {jobs[uid].lane for uid in BACKLOG} == {Lane.BACKFILL}
    events = told(system)
    claims = [uid for kind, uid in events if kind == "claimed"]
    # Two places are filled at once, and either may write its claim first.
    assert claims[:2] == [URGENT, ROUTINE] if places == 1 else set(claims[:2]) == {URGENT, ROUTINE}
    held = 0
    for kind, uid in events:
        if uid in BACKLOG:
            held += 1 if kind == "claimed" else -1
            assert held <= 1, "backfill had both places of the worker"
    assert claims[2:] == BACKLOG


def test_backfill_leaves_a_place_free(make_system, eventually):
    """While its one study stands still and more wait, an urgent study comes and is scored."""
    system = system_with_lanes(make_system, worker={"concurrency": 2})
    marker = system.folder / "stands-still"
    system.programs["worker"].environment["COVARIANCE_FAILPOINTS"] = (
        f"pipeline.after_infer=sleep:600~{marker}"
    )
    system.start("node")
    for number, study in enumerate(BACKLOG):
        system.send(film(study, number), calling="ARCHIVE")
    eventually(lambda: Dispatcher(system.settings).depths()[Lane.BACKFILL] == len(BACKLOG), what="all wait")
    system.start("worker")
    eventually(marker.exists, what="the first stands still", seconds=120)
    urgent = film(URGENT)
    urgent.RequestedProcedurePriority = "STAT"
    system.send(urgent, calling="CR1")
    done = lambda: (record := system.ledger.study(URGENT)) and record.jobs[-1].state is JobState.DONE  # noqa: E731
    eventually(done, what="the urgent study is scored", seconds=120)
    assert [job.state for job in system.ledger.study(BACKLOG[0]).jobs] == [JobState.CLAIMED]
    assert [uid for uid in BACKLOG if system.ledger.study(uid)] == BACKLOG[:1]
    system.programs["worker"].kill()


def test_lanes_outlive_the_broker(make_system, eventually):
    """Emptied, the broker is told again by the reconciler, each study in its lane."""
    system = system_with_lanes(make_system)
    system.start("node")
    send_all(system)
    depths = Dispatcher(system.settings).depths
    waiting = {Lane.STAT: 1, Lane.ROUTINE: 1, Lane.BACKFILL: len(BACKLOG)}
    eventually(lambda: depths() == waiting, what="every study waits in its lane")
    system.flush_broker()
    assert depths() == dict.fromkeys(Lane, 0)
    system.start("deliver")
    eventually(lambda: depths() == waiting, what="every study waits in its lane again")


def test_messages_of_the_version_before_are_heard(make_system, eventually):
    """They lie in the queue of routine, which has kept its name."""
    system = system_with_lanes(make_system)
    system.start("node")
    system.send(film(ROUTINE), calling="CR1")
    depths = Dispatcher(system.settings).depths
    eventually(lambda: depths() == {Lane.STAT: 0, Lane.ROUTINE: 1, Lane.BACKFILL: 0}, what="it waits")
    with redis.Redis(port=system.redis_port, db=int(system.settings.queue.url.rpartition("/")[2])) as client:
        assert client.llen(f"{system.settings.queue.prefix}score") == 1
    assert QUEUES[Lane.ROUTINE] == "score"
    system.start("worker")
    done = lambda: (record := system.ledger.study(ROUTINE)) and record.jobs[-1].state is JobState.DONE  # noqa: E731
    eventually(done, what="it is scored", seconds=120)
