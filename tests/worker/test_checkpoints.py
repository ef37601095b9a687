"""Heads of the audit trail that were noted elsewhere, and what they prove."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dicom_node.errors import Retryable
from tests.worker.build import claimed, settings_in
from worker.checkpoints import Checkpoint, Checkpointer, CheckpointFile
from worker.ledger import ChainHead, open_ledger
from worker.ledger.store import utcnow


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(settings_in(tmp_path), migrate=True) as opened:
        yield opened


@pytest.fixture
def file(tmp_path):
    """A file of checkpoints in a folder that is not there yet."""
    return CheckpointFile(tmp_path / "elsewhere" / "checkpoints")


@pytest.fixture
def forge(tmp_path):
    """`forge(statement)` changes the audit trail as somebody with every right does."""

    def run(statement: str) -> None:
        with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
            for trigger in ("update", "delete"):
                connection.execute(f"DROP TRIGGER IF EXISTS events_refuse_{trigger}")
            connection.execute(statement)

    return run


def noted(file):
    return [one.head for one in file.read()[0]]


def test_the_head_is_noted_when_it_has_moved(ledger, file):
    """Each step adds a line as long as something happened since the last."""
    checkpointer = Checkpointer(file.path, ledger)
    checkpointer.step()
    claimed(ledger, "1.2")
    checkpointer.step()
    checkpointer.step()
    assert noted(file) == [ChainHead(), ledger.head()]


def test_the_head_is_not_noted_before_its_time(ledger, file):
    """Between two checkpoints lies the pause that the settings say."""
    checkpointer = Checkpointer(file.path, ledger, seconds=3600)
    checkpointer.step()
    claimed(ledger, "1.2")
    checkpointer.step()
    assert len(noted(file)) == 1


def test_a_checkpoint_is_a_line_of_json(ledger, file):
    """A line tells when, how many events and the last hash, and nothing of a study."""
    claimed(ledger, "1.2")
    Checkpointer(file.path, ledger).step()
    (line,) = file.path.read_text().splitlines()
    told = json.loads(line)
    assert told.keys() == {"at", "events", "hash"}
    assert (told["events"], told["hash"]) == (2, ledger.head().hash)


def test_the_file_is_ours_alone(ledger, file):
    """Nobody else may read or write the file that we make."""
    file.append(ledger.head(), utcnow())
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_torn_line_spoils_no_other(ledger, file):
    """What a power cut left of a line is counted, and the next line stands by itself."""
    file.append(ChainHead(), utcnow())
    with file.path.open("ab") as torn:
        torn.write(b'{"at":"2026-')
    claimed(ledger, "1.2")
    file.append(ledger.head(), utcnow())
    assert (noted(file), file.read()[1]) == ([ChainHead(), ledger.head()], 1)


def test_of_a_file_of_years_only_the_end_is_read(ledger, file, monkeypatch):
    """A step over a thousand lines looks at the last, notes the head and does not read it again."""
    for _ in range(1000):
        file.append(ChainHead(), utcnow())
    claimed(ledger, "1.2")
    validated = []
    validate = Checkpoint.model_validate_json
    monkeypatch.setattr(
        Checkpoint, "model_validate_json", lambda line: validated.append(line) or validate(line)
    )
    assert Checkpointer(file.path, ledger).step().head == ledger.head()
    assert 1 <= len(validated) <= 2
    assert file.last() == file.read()[0][-1]
    assert len(noted(file)) == 1001


def test_a_torn_end_hides_no_checkpoint(file):
    """However much a power cut left, the last line before it is found; where there is none, none is."""
    assert file.last() is None
    file.append(ChainHead(), utcnow())
    with file.path.open("ab") as torn:
        torn.write(b"\0\n" * 5000)
    assert file.last() == file.read()[0][-1]
    file.path.write_bytes(b"\0\n" * 5000)
    assert file.last() is None


def test_a_line_is_on_the_disk_when_it_is_said_to_be(ledger, file, monkeypatch):
    """The line is synchronised, and so is the directory that names its file."""
    synchronised = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synchronised.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    file.append(ledger.head(), utcnow())
    assert synchronised == [str(file.path), str(file.path.parent)]


def test_a_file_that_cannot_be_written_is_tried_again(ledger, tmp_path):
    """A share that is away is no reason to stop: the step may succeed later."""
    (tmp_path / "elsewhere").write_text("a file where the folder should be")
    with pytest.raises(Retryable, match="cannot be"):
        Checkpointer(tmp_path / "elsewhere" / "checkpoints", ledger).step()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM events WHERE seq > 2", "UPDATE events SET hash = previous WHERE seq = 4"]
)
def test_a_trail_that_lost_its_checkpoint_is_an_alarm(ledger, file, forge, statement):
    """A step over a trail that no longer holds the last checkpoint raises an alarm and notes nothing."""
    alarms = []
    checkpointer = Checkpointer(file.path, ledger, alarm=alarms.append)
    claimed(ledger, "1.2")
    claimed(ledger, "1.3")
    assert checkpointer.step().events == 4
    forge(statement)
    with capture_logs() as logs:
        assert checkpointer.step() is None
    assert [line["event"] for line in logs] == ["audit_trail_broken"]
    assert "no longer holds event 4" in alarms[0]
    assert len(noted(file)) == 1
