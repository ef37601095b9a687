"""The loops of the deliver process, and the housekeeping."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from deploy.pacs import StandInPacs
from dicom_node.errors import Retryable
from dicom_node.outbox import Outbox
from dicom_node.spool import Spool
from tests.dicom_node.build import eventually
from tests.worker.build import settings_in, written
from worker.ledger import open_ledger
from worker.office import Loop, Office, repeat


@pytest.mark.parametrize("error", [ValueError("DOE^JOHN"), Retryable("The database is away."), OSError(28)])
def test_loop_survives_any_error(error):
    """A step that fails is taken again, and of an error that is not ours only the type is logged."""
    stop, taken = threading.Event(), []

    def step():
        taken.append(len(taken))
        if len(taken) < 3:
            raise error
        stop.set()

    with capture_logs() as logs:
        repeat(Loop(step, 0.001), stop)
    assert len(taken) == 3
    assert len(logs) == 2
    assert "DOE" not in str(logs)


def test_outbox_is_swept(tmp_path):
    """What a worker kept and did not record is removed when it is old; nothing else ever is."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    with open_ledger(settings, migrate=True) as ledger:
        recorded = [output.path for output in written(ledger, spool, "1.2.840.1")]
        young = spool.outbox.keep("1.2.840.1", "1.2.840.1.8", b"young")
        old = spool.outbox.keep("1.2.840.1", "1.2.840.1.9", b"old")
        # Other bytes under the UID of an output that was recorded: two workers made it.
        twin = spool.outbox.keep("1.2.840.1", recorded[0].name.partition("_")[0], b"twin")
        for path in (*recorded, old, twin):
            os.utime(path, (0, 0))
        Office(settings, ledger).sweep()
    assert [path.exists() for path in (*recorded, young)] == [True] * (len(recorded) + 1)
    assert not old.exists()
    assert not twin.exists()


def test_what_was_found_recorded_is_not_asked_for_again(tmp_path):
    """A second sweep asks the ledger only about outputs that the first did not find recorded."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    with open_ledger(settings, migrate=True) as ledger:
        recorded = [output.path for output in written(ledger, spool, "1.2.840.1", heatmaps=49)]
        for path in recorded:
            os.utime(path, (0, 0))
        selects = []

        @event.listens_for(ledger._engine, "before_cursor_execute")
        def note(connection, cursor, statement, *_):
            if statement.startswith("SELECT"):
                selects.append(statement)

        office = Office(settings, ledger)
        office.sweep()
        assert len(selects) == 1
        office.sweep()
        assert len(selects) == 1
        late = spool.outbox.keep("1.2.840.1", "1.2.840.1.9", b"late")
        os.utime(late, (0, 0))
        recorded[0].unlink()
        office.sweep()
        assert len(selects) == 2
        assert not late.exists()
        assert len(ledger._recorded) == 49  # no more than the disk holds
    assert [path.exists() for path in recorded] == [False] + [True] * 49


def test_an_output_that_the_disk_does_not_let_go_stops_no_other(tmp_path, monkeypatch):
    """It is tried again at the next look."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    kept = [spool.outbox.keep("1.2.840.1", f"1.2.840.1.{number}", b"result") for number in range(3)]
    for path in kept:
        os.utime(path, (0, 0))
    drop, stubborn = Outbox.drop, kept[0]

    def refuse(outbox, path):
        if path == stubborn:
            raise PermissionError(1, "Operation not permitted")
        drop(outbox, path)

    with open_ledger(settings, migrate=True) as ledger:
        office = Office(settings, ledger)
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "drop", refuse)
            office.sweep()
            assert [path.exists() for path in kept] == [True, False, False]
        office.sweep()
    assert not stubborn.exists()


def test_parts_of_dead_workers_are_swept(tmp_path):
    """What a worker was writing when it died is removed when it is old, and what somebody writes never."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    young, old = (spool.root / "incoming" / name for name in ("young.part", "old.part"))
    for path in (young, old):
        path.touch()
    with spool.receive(), open_ledger(settings, migrate=True) as ledger:
        (written_to,) = set(spool.root.glob("incoming/*")) - {young, old}
        for path in (written_to, old):
            os.utime(path, (0, 0))
        Office(settings, ledger).sweep()
        assert set(spool.root.glob("incoming/*")) == {young, written_to}


def test_office_sends_and_drops(tmp_path):
    """The whole process brings results to a PACS that proves nothing, and keeps no bytes after."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    stop = threading.Event()
    with StandInPacs(tmp_path / "pacs") as pacs:
        pacs_of = {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "verify": "none"}
        settings = settings_in(
            tmp_path,
            destinations=[{"name": "pacs", **pacs_of}],
            delivery={"reconcile_seconds": 0.05},
            queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"},
        )
        with open_ledger(settings, migrate=True) as ledger:
            kept = written(ledger, spool, "1.2.840.1")
            running = threading.Thread(target=Office(settings, ledger).run, args=(stop,))
            running.start()
            try:
                eventually(lambda: not any(output.path.exists() for output in kept))
            finally:
                stop.set()
                running.join()
        assert len(pacs.held("1.2.840.1")) == 2


def test_output_that_cannot_be_dropped_stops_no_other(tmp_path):
    """One stubborn file is logged and tried again; the outputs behind it are dropped and recorded."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    with open_ledger(settings, migrate=True) as ledger:
        stubborn, other = written(ledger, spool, "1.2.840.1")
        stubborn.path.unlink()
        (stubborn.path / "in the way").mkdir(parents=True)
        for one in ledger.due_deliveries("pacs", 10):
            ledger.deliveries_sent({one.delivery_id: 0x0000})
            ledger.delivery_verified(one.delivery_id)
        with capture_logs() as logs:
            Office(settings, ledger).drop_outputs()
        assert [one["event"] for one in logs] == ["output_not_dropped"]
        assert [one.path for one in ledger.outputs_to_drop()] == [stubborn.path]
        assert not other.path.exists()


def test_stubborn_outputs_in_front_keep_back_no_other(tmp_path, monkeypatch):
    """However many files the disk does not let go, the outputs behind them are dropped at the same look."""
    monkeypatch.setattr("worker.office._OUTPUTS", 2)
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = settings_in(tmp_path, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    with open_ledger(settings, migrate=True) as ledger:
        *stubborn, good = written(ledger, spool, "1.2.840.1", heatmaps=2)
        for one in stubborn:
            one.path.unlink()
            (one.path / "in the way").mkdir(parents=True)
        for one in ledger.due_deliveries("pacs", 10):
            ledger.deliveries_sent({one.delivery_id: 0x0000})
            ledger.delivery_verified(one.delivery_id)
        Office(settings, ledger).drop_outputs()
        assert [one.path for one in ledger.outputs_to_drop()] == [one.path for one in stubborn]
        assert not good.path.exists()


def test_who_had_work_gathers_before_the_next_step():
    """After a step with work comes the longer pause, so that the next association carries more."""
    waits = []

    class Stop:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) > 3

    answers = iter([True, False, None])
    repeat(Loop(lambda: next(answers), 0.1, 0.5), Stop())
    assert waits == [0.1, 0.5, 0.1, 0.1]


@pytest.mark.parametrize(("rests", "waits"), [(9.0, [2.0, 2.0, 9.0, 30.0]), (0.0, [2.0] * 4)])
def test_a_look_that_takes_long_rests_longer(monkeypatch, rests, waits):
    """A look takes a tenth of the time, up to the longest pause; what waits for a peer as it did."""
    now, seconds, rested = [0.0], iter([0.1, 1.0, 60.0]), []
    monkeypatch.setattr("worker.office.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Stop:
        def wait(self, pause):
            rested.append(pause)
            return len(rested) > 3

    def step():
        now[0] += next(seconds)

    repeat(Loop(step, 2.0, rests=rests), Stop())
    assert rested == waits


def test_only_looks_rest_for_what_they_took(tmp_path, monkeypatch):
    """Sending, and whatever else waits for a peer, goes on at its own pace."""
    started = []
    monkeypatch.setattr("worker.office.repeat", lambda loop, *_: started.append(loop))
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    settings = settings_in(
        tmp_path,
        destinations=[destination],
        heartbeat={"every_minutes": 5},
        audit={"checkpoints": str(tmp_path / "checkpoints"), "syslog_host": "localhost"},
        queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"},
    )
    stop = threading.Event()
    stop.set()
    with open_ledger(settings, migrate=True) as ledger:
        Office(settings, ledger).run(stop)
    paced = {loop.step.__qualname__ for loop in started if not loop.rests}
    assert paced == {"Deliverer.step", "Office.take_reports", "AuditExport.step", "Heartbeat.step"}
    assert len(started) == 11


def test_a_bell_ends_a_pause():
    """A loop that rests for an hour takes a step when it is rung for, and ends when it is to."""
    stop, bell, stepped = threading.Event(), threading.Event(), threading.Event()
    loop = threading.Thread(target=repeat, args=(Loop(stepped.set, 3600.0), stop, bell))
    loop.start()
    bell.set()
    assert stepped.wait(30)
    stop.set()
    bell.set()
    loop.join(30)
    assert not loop.is_alive()
