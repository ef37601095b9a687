"""A PACS that lies: what the ledger holds of it, what people see, and that it ends committed after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from deploy.overview import print_study
from deploy.pacs import StandInPacs
from dicom_node import uids
from dicom_node.server import StorageServer
from dicom_node.spool import Spool
from tests.dicom_node.build import data_set_bytes
from tests.worker.build import Clock, settings_in, written
from worker.deliver import Deliverer
from worker.ledger import DeliveryState, open_ledger
from worker.office import Office

STUDY = "1.2.840.1"
TIMEOUT = 1.0
PAST_ANY_PAUSE = 4000.0
COERCION, NOT_SUPPORTED, OUT_OF_RESOURCES, PROCESSING_FAILURE = 0xB000, 0x0122, 0xA700, 0x0110


class LyingPacs(StandInPacs):
    """Tells the truth until a test tells it otherwise."""

    answers: int | None = None
    """Status of a C-STORE that is kept."""
    keeps = True
    takes_requests_with = 0x0000
    """Status of an N-ACTION; no report follows one that is not success."""
    reports = 1
    """How often each report is sent."""
    twisted: Callable | None = None
    """What it makes of a report."""

    def _store(self, event):
        if not self.keeps:
            return 0x0000
        status = super()._store(event)
        return status if self.answers is None else self.answers

    def _commit(self, event):
        if self.takes_requests_with:
            return self.takes_requests_with, None
        return super()._commit(event)

    def _report(self, asker, request):
        for _ in range(self.reports):
            super()._report(asker, request)

    def _judge(self, request):
        report, event_type = super()._judge(request)
        if self.twisted is not None:
            self.twisted(report)
        return report, event_type

    def finish_reporting(self):
        """Return when all that it has been asked for is reported."""
        self._reports.submit(lambda: None).result(60)

    def tell_the_truth(self):
        for name in ("answers", "keeps", "takes_requests_with", "reports", "twisted"):
            self.__dict__.pop(name, None)
        self.refuse_with, self.delay_seconds, self.silent = None, 0.0, False


class Site:
    """A result that is to reach one PACS, and what brings it there, step by step."""

    def __init__(self, settings, ledger, spool, pacs, clock) -> None:
        self.settings, self.ledger, self.pacs, self.clock = settings, ledger, pacs, clock
        self.outputs = written(ledger, spool, STUDY)
        self._deliverer = Deliverer(settings.destinations[0], settings=settings, ledger=ledger, clock=clock)
        self._office = Office(settings, ledger)

    def step(self) -> None:
        """Send and ask, and take what is reported."""
        self._deliverer.step()
        self.pacs.finish_reporting()
        self._office.take_reports()

    def states(self):
        results = self.ledger.study(STUDY).results
        return [d.state for result in results for output in result.outputs for d in output.deliveries]

    def events(self):
        return [event.kind for event in self.ledger.study(STUDY).events]


@pytest.fixture
def site(tmp_path):
    spool, clock = Spool(tmp_path / "spool"), Clock()
    spool.prepare()
    listener = StorageServer(settings_in(tmp_path, node={"port": 0}), spool, lambda _: None)
    with LyingPacs(tmp_path / "pacs", peers={"COVARIANCE": ("127.0.0.1", listener.start())}) as pacs:
        destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
        settings = settings_in(
            tmp_path,
            destinations=[destination],
            delivery={"timeout": TIMEOUT},
            queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"},
        )
        with open_ledger(settings, migrate=True, clock=clock) as ledger:
            yield Site(settings, ledger, spool, pacs, clock)
    listener.stop()


@dataclass(frozen=True, kw_only=True)
class Lie:
    """What the PACS does, and what follows while it does it."""

    values: dict[str, object]
    state: DeliveryState
    seen: str
    """What `covariance show` says of it."""
    by_people: bool = False
    """Whether it needs a `covariance retry`."""


def other_objects(report):
    """Name objects that were never asked about."""
    for item in report.ReferencedSOPSequence:
        item.ReferencedSOPInstanceUID = uids.derive_uid("other", item.ReferencedSOPInstanceUID)


def other_transaction(report):
    """Answer a request that was never made."""
    report.TransactionUID = uids.derive_uid("other", report.TransactionUID)


LIES = {
    "out of resources": Lie(
        values={"refuse_with": OUT_OF_RESOURCES},
        state=DeliveryState.DUE,
        seen="due  1 try, last answer: 0xA700",
    ),
    "does not know the class": Lie(
        values={"refuse_with": NOT_SUPPORTED},
        state=DeliveryState.PARKED,
        seen="parked  The destination does not accept this kind of object from us (0x0122).",
        by_people=True,
    ),
    "says nothing": Lie(
        values={"delay_seconds": 2.5 * TIMEOUT},
        state=DeliveryState.DUE,
        seen="due  1 try, last answer: no answer",
    ),
    "keeps nothing": Lie(values={"keeps": False}, state=DeliveryState.DUE, seen="commitment_failed"),
    "takes no commitment request": Lie(
        values={"takes_requests_with": PROCESSING_FAILURE},
        state=DeliveryState.STORED,
        seen="commitment_refused",
    ),
    "never reports": Lie(values={"silent": True}, state=DeliveryState.STORED, seen="commitment_requested"),
    "reports other objects": Lie(
        values={"twisted": other_objects}, state=DeliveryState.STORED, seen="commitment_requested"
    ),
    "reports another transaction": Lie(
        values={"twisted": other_transaction}, state=DeliveryState.STORED, seen="commitment_requested"
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_seen_and_heals(site, capsys, lie):
    """While the PACS lies nothing counts as proven and people see why; after, it holds each object once."""
    told = LIES[lie]
    for name, value in told.values.items():
        setattr(site.pacs, name, value)
    site.step()
    assert site.states() == [told.state] * 2
    capsys.readouterr()
    print_study(site.settings, STUDY, as_json=False)
    seen = capsys.readouterr().out
    assert told.seen in seen, seen

    site.pacs.tell_the_truth()
    if told.by_people:
        site.clock.pass_by(PAST_ANY_PAUSE)
        site.step()
        assert site.states() == [told.state] * 2
        assert site.ledger.retry(STUDY) == 2
    deadline = time.monotonic() + 60
    while site.states() != [DeliveryState.COMMITTED] * 2 and time.monotonic() < deadline:
        site.clock.pass_by(PAST_ANY_PAUSE)
        site.step()
    assert site.states() == [DeliveryState.COMMITTED] * 2
    held = {one.sop_instance_uid: data_set_bytes(one.path) for one in site.pacs.held()}
    assert held == {one.sop_instance_uid: data_set_bytes(one.path) for one in site.outputs}
    assert site.ledger.verify().ok


def test_stored_with_a_warning_is_stored(site):
    """B000 means that the object is kept: it is not sent again, and the status is in the trail."""
    site.pacs.answers = COERCION
    site.step()
    assert site.states() == [DeliveryState.COMMITTED] * 2
    stored = [event.body for event in site.ledger.study(STUDY).events if event.kind == "stored"]
    assert [(one["last_status"], one["attempts"]) for one in stored] == [(COERCION, 1)] * 2


def test_proof_that_comes_twice_is_one(site):
    """A report that is sent again changes nothing and leaves no event."""
    site.pacs.reports = 2
    site.step()
    site.step()
    assert site.states() == [DeliveryState.COMMITTED] * 2
    assert site.events().count("committed") == 2


def test_report_of_what_was_not_asked_is_said(site, capfd):
    """A report on a transaction of somebody else is named in the log, and does not stay in the spool."""
    site.pacs.twisted = other_transaction
    site.step()
    assert "report_of_what_was_not_asked" in "".join(capfd.readouterr())
    assert list(site.settings.spool.path.glob("reports/*")) == []
