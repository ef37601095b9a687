"""A deliverer before a PACS that is away, unwilling, forgetful or silent."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from datetime import timedelta

import pytest
from pynetdicom import AE, evt
from sqlalchemy import event

from deploy.pacs import StandInPacs
from dicom_node import uids
from dicom_node.server import StorageServer
from tests.dicom_node.build import data_set_bytes, eventually
from tests.dicom_node.certificates import Authority
from tests.worker.build import settings_in, written
from worker.deliver import Deliverer, backoff
from worker.ledger import DeliveryState, open_ledger
from worker.office import Office
from worker.settings import DeliverySection

STUDY, OTHER_STUDY = "1.2.840.1", "1.2.840.2"
CANNOT_UNDERSTAND, DUPLICATE, NOT_SUPPORTED, OUT_OF_RESOURCES = 0xC000, 0x0111, 0x0122, 0xA700
PAST_ANY_PAUSE = 2000.0


@pytest.fixture
def listener(tmp_path, spool):
    """Our own node, to which a PACS reports; its port."""
    server = StorageServer(settings_in(tmp_path, node={"port": 0}), spool, lambda _: None)
    yield server.start()
    server.stop()


@pytest.fixture
def pacs(tmp_path, listener):
    with StandInPacs(tmp_path / "pacs", peers={"COVARIANCE": ("127.0.0.1", listener)}) as pacs:
        yield pacs


@pytest.fixture
def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def deliverer(tmp_path, ledger, clock):
    """`deliverer(port, verify=...)` serves the destination `pacs`."""

    def make(port, *, verify="none", **more):
        pacs = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": port, "verify": verify}
        pacs |= more
        settings = settings_in(tmp_path, destinations=[pacs])
        return Deliverer(settings.destinations[0], settings=settings, ledger=ledger, clock=clock)

    return make


def deliveries(ledger, study=STUDY):
    record = ledger.study(study)
    return [d for result in record.results for output in result.outputs for d in output.deliveries]


def states(ledger, study=STUDY):
    return [delivery.state for delivery in deliveries(ledger, study)]


def try_often(one, clock, times):
    for _ in range(times):
        one.step()
        clock.pass_by(PAST_ANY_PAUSE)


def test_pause_doubles_to_its_cap():
    """The pause before a try doubles, spread by a quarter, and ends at the cap."""
    settings = DeliverySection(backoff_first=1.0, backoff_cap=60.0)
    for attempts, seconds in ((0, 1), (1, 2), (5, 32), (6, 60), (10_000, 60)):
        assert 0.75 <= backoff(attempts, settings) / timedelta(seconds=seconds) <= 1.25


def test_a_destination_is_reached_over_tls(ledger, spool, deliverer, tmp_path, clock):
    """Where the settings say so, results go over TLS; while it cannot be trusted they wait."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "spool")
    ours, theirs = authority.issue(), authority.issue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs.certificate, theirs.key)
    context.load_verify_locations(theirs.authorities)
    entity, stored = AE("STANDIN"), []
    for sop_class in (uids.SECONDARY_CAPTURE, uids.COMPREHENSIVE_3D_SR):
        entity.add_supported_context(sop_class, uids.EXPLICIT_VR_LITTLE_ENDIAN)
    keep = (evt.EVT_C_STORE, lambda event: stored.append(event.assoc) or 0)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[keep], ssl_context=context)
    written(ledger, spool, STUDY)
    port = server.socket.getsockname()[1]
    deliverer(port, tls=ours.files | {"authorities": stranger.file}).step()
    assert states(ledger) == [DeliveryState.DUE] * 2
    clock.pass_by(PAST_ANY_PAUSE)
    deliverer(port, tls=ours.files).step()
    server.shutdown()
    assert states(ledger) == [DeliveryState.STORED] * 2
    assert len(stored) == 2


def test_stored_is_the_end_where_no_proof_is_asked(ledger, spool, pacs, deliverer):
    """Both objects arrive byte for byte, and nothing is asked."""
    outputs = written(ledger, spool, STUDY)
    deliverer(pacs.port).step()
    assert states(ledger) == [DeliveryState.STORED] * 2
    for held in pacs.held(STUDY):
        sent = next(o for o in outputs if o.sop_instance_uid == held.sop_instance_uid)
        assert data_set_bytes(sent.path) == data_set_bytes(held.path)


class LeavesAfterOne(StandInPacs):
    """Stores one object, and aborts the association when the next comes."""

    def _store(self, event):
        if self.held():
            event.assoc.abort()
            return 0xA700
        return super()._store(event)


def test_what_was_stored_before_an_abort_is_known(ledger, spool, deliverer, tmp_path):
    """An association that ends in the middle leaves the first object stored and the second due."""
    written(ledger, spool, STUDY)
    with LeavesAfterOne(tmp_path / "pacs") as pacs:
        assert deliverer(pacs.port).step() is True
    assert sorted(states(ledger)) == [DeliveryState.DUE, DeliveryState.STORED]


def test_nothing_is_asked_on_an_association_that_has_ended(ledger, spool, deliverer, tmp_path):
    """What was stored before the abort waits for no answer to a question that nobody put."""
    written(ledger, spool, STUDY)
    with LeavesAfterOne(tmp_path / "pacs") as pacs:
        deliverer(pacs.port, verify="commitment").step()
    assert len(ledger.stored_unverified("pacs", 10)) == 1
    kinds = [event.kind for event in ledger.study(STUDY).events]
    assert "commitment_requested" not in kinds


def test_what_is_withdrawn_meanwhile_is_not_sent(ledger, spool, pacs, deliverer, monkeypatch):
    """A recall that comes behind the first object of an association keeps back the others."""
    written(ledger, spool, STUDY)
    written(ledger, spool, OTHER_STUDY)
    monkeypatch.setattr("worker.deliver._RECORD_SECONDS", 0.0)
    sent = ledger.deliveries_sent

    def withdrawn(statuses):
        sent(statuses)
        for model in ledger.models():
            ledger.recall_model(model, "Wrong labels.")

    monkeypatch.setattr(ledger, "deliveries_sent", withdrawn)
    deliverer(pacs.port).step()
    found = Counter(states(ledger) + states(ledger, OTHER_STUDY))
    assert found == {DeliveryState.STORED: 1, DeliveryState.DUE: 3}


def test_breaker_leaves_an_absent_pacs_alone(ledger, spool, clock, deliverer, free_port, tmp_path):
    """After a failed association nothing is tried before the pause has passed; then it is."""
    written(ledger, spool, STUDY)
    one = deliverer(free_port)
    one.step()
    one.step()
    assert [(d.state, d.attempts) for d in deliveries(ledger)] == [(DeliveryState.DUE, 1)] * 2
    clock.pass_by(PAST_ANY_PAUSE)
    with StandInPacs(tmp_path / "pacs", port=free_port):
        one.step()
    assert states(ledger) == [DeliveryState.STORED] * 2


def test_an_absent_pacs_costs_one_transaction(ledger, spool, deliverer, free_port, clock, monkeypatch):
    """What could not be sent is noted together, each object with a try of its own."""
    written(ledger, spool, STUDY)
    written(ledger, spool, OTHER_STUDY)
    begun, writing = [], ledger._writing
    monkeypatch.setattr(ledger, "_writing", lambda: begun.append(True) or writing())
    deliverer(free_port).step()
    assert len(begun) == 1
    assert [one.attempts for study in (STUDY, OTHER_STUDY) for one in deliveries(ledger, study)] == [1] * 4
    assert ledger.due_deliveries("pacs", 10) == []
    clock.pass_by(PAST_ANY_PAUSE)
    assert len(ledger.due_deliveries("pacs", 10)) == 4


def test_who_has_nothing_to_send_seldom_looks_for_proof(ledger, deliverer, free_port, clock):
    """In two seconds of idle looks the ledger is asked at most three times for what has no proof."""
    one, asked = deliverer(free_port, verify="commitment"), []
    event.listen(ledger._engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    for _ in range(20):
        assert one.step() is False
        clock.pass_by(0.1)
    assert 1 <= sum("commitments" in statement for statement in asked) <= 3


def test_what_one_request_left_is_asked_about_at_once(ledger, spool, pacs, tmp_path, clock):
    """A second request follows the first in the next step, not a second later."""
    written(ledger, spool, STUDY)
    ledger.deliveries_sent({one.delivery_id: 0 for one in ledger.due_deliveries("pacs", 10)})
    to = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
    settings = settings_in(tmp_path, destinations=[to], delivery={"batch": 1})
    one = Deliverer(settings.destinations[0], settings=settings, ledger=ledger, clock=clock)
    one.step()
    assert len(ledger.stored_unverified("pacs", 10)) == 1
    one.step()
    assert ledger.stored_unverified("pacs", 10) == []


def test_refusal_is_tried_again_after_a_pause(ledger, spool, pacs, deliverer):
    """A refused object is not sent again at once."""
    written(ledger, spool, STUDY)
    pacs.refuse_with = CANNOT_UNDERSTAND
    one = deliverer(pacs.port)
    one.step()
    one.step()
    assert [(d.state, d.attempts) for d in deliveries(ledger)] == [(DeliveryState.DUE, 1)] * 2


def test_patience_with_refusals_ends(ledger, spool, pacs, clock, deliverer):
    """An object that is refused again and again is set aside, after as many tries as the settings allow."""
    written(ledger, spool, STUDY)
    pacs.refuse_with = CANNOT_UNDERSTAND
    patience = DeliverySection().permanent_attempts
    try_often(deliverer(pacs.port), clock, patience + 2)
    found = [(d.state, d.attempts, d.last_status) for d in deliveries(ledger)]
    assert found == [(DeliveryState.FAILED, patience, CANNOT_UNDERSTAND)] * 2


def test_patience_outlasts_an_archive_that_starts_again():
    """0110 and C000 are what an archive says while its database is away: that is no verdict on an object."""
    settings = DeliverySection()
    pauses = [backoff(refusals, settings) for refusals in range(settings.permanent_attempts - 1)]
    assert sum(pauses, timedelta()) > timedelta(minutes=30)


def test_outage_takes_nothing_from_patience(ledger, spool, clock, deliverer, free_port, tmp_path):
    """After a long outage one refusal, of a PACS that starts up, does not set an object aside."""
    written(ledger, spool, STUDY)
    one = deliverer(free_port)
    try_often(one, clock, 2 * DeliverySection().permanent_attempts)
    with StandInPacs(tmp_path / "pacs", port=free_port) as pacs:
        pacs.refuse_with = CANNOT_UNDERSTAND
        try_often(one, clock, 1)
        assert states(ledger) == [DeliveryState.DUE] * 2
        pacs.refuse_with = None
        one.step()
    assert states(ledger) == [DeliveryState.STORED] * 2


def test_patience_with_a_full_pacs_does_not_end(ledger, spool, pacs, clock, deliverer):
    """Out of resources is tried for as long as it lasts."""
    written(ledger, spool, STUDY)
    pacs.refuse_with = OUT_OF_RESOURCES
    one = deliverer(pacs.port)
    try_often(one, clock, 2 * DeliverySection().permanent_attempts)
    pacs.refuse_with = None
    one.step()
    assert states(ledger) == [DeliveryState.STORED] * 2


@pytest.mark.parametrize(
    ("status", "state"), [(DUPLICATE, DeliveryState.STORED), (NOT_SUPPORTED, DeliveryState.PARKED)]
)
def test_answers_that_end_the_sending(ledger, spool, pacs, deliverer, status, state):
    """A duplicate is our own earlier try; a class that is not supported waits for people."""
    written(ledger, spool, STUDY)
    pacs.refuse_with = status
    deliverer(pacs.port).step()
    assert states(ledger) == [state] * 2


def test_unreadable_output_waits_alone(ledger, spool, pacs, clock, deliverer):
    """An output that the disk does not give back waits; all others are sent, and it is when it is back."""
    bad, _ = written(ledger, spool, STUDY)
    written(ledger, spool, OTHER_STUDY)
    content = bad.path.read_bytes()
    bad.path.unlink()
    bad.path.mkdir()  # as good as a bad sector, also for root
    one = deliverer(pacs.port)
    one.step()
    assert (
        sorted(states(ledger) + states(ledger, OTHER_STUDY))
        == [DeliveryState.DUE] + [DeliveryState.STORED] * 3
    )
    bad.path.rmdir()
    bad.path.write_bytes(content)
    clock.pass_by(PAST_ANY_PAUSE)
    one.step()
    assert states(ledger) == [DeliveryState.STORED] * 2


def test_outputs_follow_a_spool_that_was_moved(ledger, spool, pacs, tmp_path):
    """What was recorded where the spool lay before is sent, and dropped, where it lies now."""
    written(ledger, spool, STUDY)
    moved = spool.root.rename(tmp_path / "elsewhere")
    destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
    settings = settings_in(
        tmp_path,
        destinations=[{**destination, "verify": "none"}],
        spool={"path": moved, "minimum_free_bytes": 0},
        queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"},
    )
    with open_ledger(settings, migrate=False) as same:
        Deliverer(settings.destinations[0], settings=settings, ledger=same).step()
        assert states(same) == [DeliveryState.STORED] * 2
        Office(settings, same).drop_outputs()
    assert list(moved.glob("outbox/*/*")) == []


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"DICM"), lambda path: path.unlink()])
def test_damaged_output_is_not_sent(ledger, spool, pacs, deliverer, damage):
    """Bytes that are not those recorded are never sent; what to do is said, and the rest is sent."""
    damaged, sound = written(ledger, spool, STUDY)
    damage(damaged.path)
    deliverer(pacs.port).step()
    assert [one.sop_instance_uid for one in pacs.held(STUDY)] == [sound.sop_instance_uid]
    failed = next(d for d in deliveries(ledger) if d.state is DeliveryState.FAILED)
    assert "covariance retry" in failed.sentence


def test_found_is_verified(ledger, spool, pacs, deliverer):
    """What a query finds after the sending is proven."""
    written(ledger, spool, STUDY)
    deliverer(pacs.port, verify="find").step()
    assert states(ledger) == [DeliveryState.VERIFIED] * 2


def test_not_found_is_sent_again(ledger, spool, pacs, clock, deliverer):
    """Stored objects that the PACS has lost are found missing, sent again, and found."""
    written(ledger, spool, STUDY)
    for due in ledger.due_deliveries("pacs", 10):
        ledger.deliveries_sent({due.delivery_id: 0x0000})
    one = deliverer(pacs.port, verify="find")
    one.step()
    assert states(ledger) == [DeliveryState.DUE] * 2
    clock.pass_by(PAST_ANY_PAUSE)
    one.step()
    assert states(ledger) == [DeliveryState.VERIFIED] * 2
    assert len(pacs.held(STUDY)) == 2


def test_a_slow_query_service_gives_way_to_what_is_to_be_sent(ledger, spool, pacs, deliverer, monkeypatch):
    """After its time it is left for the next look; each look asks at least once."""
    monkeypatch.setattr("worker.deliver._QUERY_SECONDS", 0.0)
    written(ledger, spool, STUDY)
    one = deliverer(pacs.port, verify="find")
    one.step()
    assert sorted(states(ledger)) == [DeliveryState.STORED, DeliveryState.VERIFIED]
    one.step()
    assert states(ledger) == [DeliveryState.VERIFIED] * 2


def test_one_query_a_series(ledger, spool, pacs, deliverer):
    """Objects of one series are asked about over one association, not one each."""
    written(ledger, spool, STUDY, heatmaps=4)
    asked = Counter()
    pacs._server.bind(evt.EVT_ACCEPTED, lambda event: asked.update(["association"]))
    deliverer(pacs.port, verify="find").step()
    assert states(ledger) == [DeliveryState.VERIFIED] * 5
    assert asked["association"] == 3  # to send, and for each series


def test_results_are_sent_while_queries_fail(ledger, spool, deliverer):
    """A PACS that stores and answers no query still gets every result, and is asked rarely."""
    refused = Counter()
    entity = AE(ae_title="STANDIN")
    for sop_class in (uids.SECONDARY_CAPTURE, uids.COMPREHENSIVE_3D_SR):
        entity.add_supported_context(sop_class)
    handlers = [
        (evt.EVT_C_STORE, lambda event: 0x0000),
        (evt.EVT_ACCEPTED, lambda event: refused.update([not event.assoc.accepted_contexts])),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    one = deliverer(server.server_address[1], verify="find")
    for study in ("1.2.1", "1.2.2", "1.2.3"):
        written(ledger, spool, study)
        one.step()
        assert states(ledger, study) == [DeliveryState.STORED] * 2
    server.shutdown()
    assert refused[False] == 3
    assert refused.total() <= 4


def test_report_is_taken_after_a_restart(tmp_path, ledger, spool, pacs, clock, deliverer):
    """A report that came while nobody delivered proves what was asked about, and is dropped."""
    written(ledger, spool, STUDY)
    deliverer(pacs.port, verify="commitment").step()
    eventually(lambda: list(spool.reports.waiting()))
    ledger.close()
    with open_ledger(settings_in(tmp_path), migrate=True, clock=clock) as again:
        Office(settings_in(tmp_path), again).take_reports()
        assert states(again) == [DeliveryState.COMMITTED] * 2
    assert list(spool.reports.waiting()) == []


def test_unanswered_commitment_is_asked_again(tmp_path, ledger, spool, pacs, clock, deliverer):
    """A PACS that says yes and never reports is asked again past the deadline."""
    written(ledger, spool, STUDY)
    one = deliverer(pacs.port, verify="commitment")
    pacs.silent = True
    one.step()
    pacs.silent = False
    clock.pass_by(61)
    one.step()
    eventually(lambda: list(spool.reports.waiting()))
    Office(settings_in(tmp_path), ledger).take_reports()
    assert states(ledger) == [DeliveryState.COMMITTED] * 2
