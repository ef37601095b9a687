"""The order of the system calls: nothing is said before what it rests on is durable."""

from __future__ import annotations

import pytest

from deploy.pacs import StandInPacs
from dicom_node.dimse import Field
from tests.faults.trace import commits, is_complete, made_durable, read_trace, responses, traced
from tests.integration.conftest import free_port
from worker.phantom import phantom_dataset

SMALL = {"rows": 640, "columns": 512}
STORE_RESPONSE = 0x8001


class Story:
    """Two films of a study on their whole way, with every system call that matters of each process."""

    def __init__(self, system, record, traces) -> None:
        self.spool, self.record = system.settings.spool.path, record
        self.node, self.worker, self.deliver = (read_trace(traces[name]) for name in system.programs)
        (result,) = record.results
        self.outputs = result.outputs


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def story(request, make_system, program, eventually, tmp_path_factory):
    strace, port = program("strace"), free_port()
    sections = {}
    if request.param == "postgresql":
        sections = {"database": {"url": request.getfixturevalue("cluster").new_database()}}
    folder = tmp_path_factory.mktemp("traces")
    with StandInPacs(folder / "pacs", peers={"COVARIANCE": ("127.0.0.1", port)}) as pacs:
        destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
        system = make_system([destination], port=port, worker={"lease": 60.0}, **sections)
        traces = {name: folder / f"{name}.strace" for name in system.programs}
        for name, one in system.programs.items():
            one.command = traced(strace, traces[name]) + one.command
        system.start()
        one, other = (phantom_dataset(51, salt="order", view=view, **SMALL) for view in ("PA", "LL"))
        system.send(one, other)

        def all_dropped():
            record = system.result(one.StudyInstanceUID)
            return record if record and all(o.dropped_at for o in record.results[0].outputs) else None

        # Under strace, and beside other tests, a worker takes its time to start.
        record = eventually(all_dropped, seconds=200, what="the outputs are proven and dropped")
        for running in system.programs.values():
            running.stop()
        for name, running in system.programs.items():
            pid, trace = running.process.pid, traces[name]
            eventually(lambda pid=pid, trace=trace: is_complete(trace, pid), what="a trace ends")
        yield Story(system, record, traces)


def test_answer_comes_last(story):
    """Of each object, write, sync, rename and sync of the directory come before its 0x0000."""
    answered = {
        command.uid(Field.AFFECTED_SOP_INSTANCE): (call, command.number(Field.STATUS))
        for call, command in responses(story.node, STORE_RESPONSE)
    }
    assert len(story.record.images) == 2
    for image in story.record.images:
        call, status = answered[image.sop_instance_uid]
        assert status == 0x0000
        assert made_durable(story.node, story.spool / image.path) < call.begin


def test_result_is_recorded_after_its_bytes(story):
    """The transaction that names an output is committed only when the bytes of it are durable."""
    assert len(story.outputs) == 2
    durable = max(made_durable(story.worker, story.spool / output.path) for output in story.outputs)
    for output in story.outputs:
        first, _ = next(commits(story.worker, output.sop_instance_uid))
        assert durable < first


def test_commitment_is_recorded_before_it_is_asked(story):
    """The transaction of a commitment request is in the database before the destination hears of it."""
    asked = [
        event.body["transaction_uid"] for event in story.record.events if event.kind == "commitment_requested"
    ]
    for transaction in set(asked):
        _, recorded = next(commits(story.deliver, transaction))
        heard = next(
            call
            for call in story.deliver
            if call.name == "sendto" and call.content[:1] == b"\4" and transaction.encode() in call.content
        )
        assert recorded < heard.begin


def test_bytes_are_dropped_after_the_proof(story):
    """An output leaves the outbox, and a report the spool, only when the proof is in the database."""
    for output in story.outputs:
        _, proven = next(commits(story.deliver, "committed", output.sop_instance_uid))
        dropped = next(
            call
            for call in story.deliver
            if call.name == "unlink" and call.content == bytes(story.spool / output.path)
        )
        assert proven < dropped.begin
    taken = [
        c
        for c in story.deliver
        if c.name == "unlink" and c.content.startswith(bytes(story.spool / "reports"))
    ]
    assert taken
    _, first_proof = next(commits(story.deliver, "committed"))
    assert all(first_proof < call.begin for call in taken)
