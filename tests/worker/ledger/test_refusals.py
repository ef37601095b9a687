"""Windows of refusals enter the audit trail once, whatever happens to their files."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from alembic import command
from sqlalchemy import text

from dicom_node.refusals import Refusal, RefusalWindow, Refused
from worker.ledger import Kind, open_ledger
from worker.ledger.migrate import _config
from worker.ledger.store import make_engine, transaction


def window(number: int = 1) -> RefusalWindow:
    stranger = {"address": "192.0.2.9", "calling_ae": "STRANGER", "called_ae": "COVARIANCE"}
    return RefusalWindow(
        name=f"20260301T120000Z-{number:016x}",
        since=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        until=datetime(2026, 3, 1, 12, 1, tzinfo=UTC),
        refusals=(Refusal(reason=Refused.UNKNOWN_TITLE, count=7, **stranger),),
        others={Refused.HANDSHAKE: 3},
    )


def test_a_window_is_taken_once(ledger, given):
    """The same window is one event, however often it is brought; the next one is another."""
    given.registered("1.2", "1.2.1.1")
    assert [ledger.take_refusals(window(number)) for number in (1, 1, 2, 1)] == [True, False, True, False]
    refused = [one for one in ledger.events_after(0, 100) if one.kind == Kind.REFUSED]
    assert [json.loads(one.body)["name"] for one in refused] == [window(1).name, window(2).name]
    assert ledger.verify().ok


def test_the_event_is_the_window(ledger):
    """All that was counted stands in the trail, sealed with it, and belongs to no study."""
    ledger.take_refusals(window())
    (event,) = ledger.events_after(0, 100)
    assert RefusalWindow.model_validate_json(event.body) == window()
    assert event.study_instance_uid is None


def test_a_ledger_of_before_takes_windows(empty_settings):
    """A database at revision 0003 is brought up to date, its trail as it was."""
    engine = make_engine(empty_settings.database.url)
    with transaction(engine, writes=True) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        assert connection.execute(text("SELECT count(*) FROM events")).scalar_one() == 0
    engine.dispose()
    with open_ledger(empty_settings, migrate=True) as ledger:
        assert ledger.take_refusals(window())
        assert ledger.verify().ok
