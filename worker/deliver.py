"""Write-back: one deliverer a destination sends, asks for commitment, and tries again without an end.

States are in the ledger, so that a restart forgets nothing. An unknown outcome is answered by
sending the same bytes again: the object has the same UID and is the same object.
"""

from __future__ import annotations

import hashlib
import random
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from dicom_node.dispatch import Dispatcher
from dicom_node.errors import Retryable
from dicom_node.logs import get_logger
from dicom_node.query_scu import find_instances
from dicom_node.spool import Spool
from dicom_node.status import Verdict, verdict_of
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import EXPLICIT_VR_LITTLE_ENDIAN
from worker.ledger import DueDelivery, Ledger, open_ledger
from worker.reconcile import Reconciler
from worker.settings import DeliverySection, Destination, Settings

log = get_logger("deliver")


def backoff(attempts: int, settings: DeliverySection) -> timedelta:
    """Pause before the next try: doubled each time up to the cap, with jitter so that retries spread."""
    doubled = settings.backoff_first * 2.0 ** min(attempts, 32)
    return timedelta(seconds=min(doubled, settings.backoff_cap) * random.uniform(0.75, 1.25))


class Deliverer:
    """Brings one destination up to date, a look at a time."""

    def __init__(self, destination: Destination, *, settings: Settings, ledger: Ledger) -> None:
        self._destination = destination
        self._settings = settings.delivery
        self._ledger = ledger
        self._peer = Peer(
            ae_title=destination.ae_title,
            host=destination.host,
            port=destination.port,
            calling_ae=settings.node.ae_title,
            timeout=settings.delivery.timeout,
        )
        self._failures = 0
        self._closed_until = datetime.min.replace(tzinfo=UTC)

    def step(self) -> None:
        """Send what is due and ask for proof of what is stored; nothing while the breaker is open."""
        name, now = self._destination.name, datetime.now(UTC)
        if now < self._closed_until:
            return
        due = self._ledger.due_deliveries(name, limit=self._settings.batch)
        proof_is_due = self._destination.verify != "none" and self._ledger.stored_unverified(name, limit=1)
        if not due and not proof_is_due:
            return
        try:
            if due or self._destination.verify == "commitment":
                self._associate(due)
            if self._destination.verify == "find":
                self._find()
        except PeerUnavailable as error:
            self._open_breaker(due, str(error))
        else:
            self._failures = 0

    def _associate(self, due: Sequence[DueDelivery]) -> None:
        due = [delivery for delivery in due if self._is_intact(delivery)]
        items = [_item(delivery) for delivery in due]
        commitment = self._destination.verify == "commitment"
        with StoreAssociation(self._peer, items, commitment=commitment) as association:
            for delivery, item in zip(due, items, strict=True):
                self._settle(delivery, association.send(item).status)
            if commitment:
                self._request_commitment(association)

    def _is_intact(self, delivery: DueDelivery) -> bool:
        """Whether the outbox still holds the bytes that the ledger recorded; nothing else is ever sent."""
        try:
            digest = hashlib.sha256(delivery.path.read_bytes()).hexdigest()
        except FileNotFoundError:
            digest = ""
        if digest == delivery.sha256:
            return True
        sentence = "The outbox no longer holds the bytes that were recorded: reprocess the study."
        self._ledger.delivery_failed(delivery.delivery_id, None, sentence)
        log.error("output_damaged", object=delivery.sop_instance_uid)
        return False

    def _settle(self, delivery: DueDelivery, status: int | None) -> None:
        # No answer: nobody knows whether it was stored, and the same bytes again do no harm.
        verdict = Verdict.RETRY if status is None else verdict_of(status)
        patience_ends = delivery.attempts + 1 >= self._settings.permanent_attempts
        match verdict, status:
            case Verdict.STORED, int():
                self._ledger.delivery_sent(delivery.delivery_id, status)
                return
            case Verdict.PARK, int():
                self._ledger.delivery_parked(delivery.delivery_id, status)
            case Verdict.DEAD_LETTER, int() if patience_ends:
                sentence = f"{self._destination.name} refuses the object with status 0x{status:04X}."
                self._ledger.delivery_failed(delivery.delivery_id, status, sentence)
            case _:
                not_before = datetime.now(UTC) + backoff(delivery.attempts, self._settings)
                self._ledger.delivery_retry(delivery.delivery_id, status, not_before)
        log.warning(
            "object_not_stored",
            destination=self._destination.name,
            object=delivery.sop_instance_uid,
            status="none" if status is None else f"0x{status:04X}",
            verdict=verdict.name.lower(),
        )

    def _request_commitment(self, association: StoreAssociation) -> None:
        stored = self._ledger.stored_unverified(self._destination.name, limit=self._settings.batch)
        if not stored:
            return
        transaction = f"2.25.{uuid.uuid4().int}"
        deadline = datetime.now(UTC) + timedelta(seconds=self._destination.commitment_timeout)
        # Recorded before it is asked: the report may come back before the response does.
        self._ledger.request_commitment([one.delivery_id for one in stored], transaction, deadline)
        status = association.request_commitment(
            transaction, [(one.sop_class_uid, one.sop_instance_uid) for one in stored]
        )
        if status != 0:
            log.warning("commitment_not_accepted", destination=self._destination.name, status=status)

    def _find(self) -> None:
        for one in self._ledger.stored_unverified(self._destination.name, limit=self._settings.batch):
            found = find_instances(
                self._peer, one.study_instance_uid, one.series_instance_uid, [one.sop_instance_uid]
            )
            if one.sop_instance_uid in found:
                self._ledger.delivery_verified(one.delivery_id)
            else:
                not_before = datetime.now(UTC) + backoff(one.attempts, self._settings)
                self._ledger.delivery_missing(one.delivery_id, not_before)

    def _open_breaker(self, due: Sequence[DueDelivery], sentence: str) -> None:
        self._closed_until = datetime.now(UTC) + backoff(self._failures, self._settings)
        self._failures += 1
        for delivery in due:
            self._ledger.delivery_retry(delivery.delivery_id, None, self._closed_until)
        log.warning("destination_unavailable", destination=self._destination.name, why=sentence)


def _item(delivery: DueDelivery) -> SendItem:
    return SendItem(
        sop_class_uid=delivery.sop_class_uid,
        sop_instance_uid=delivery.sop_instance_uid,
        transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
        path=delivery.path,
    )


class Office:
    """All that `covariance deliver` does: a thread a destination, and the housekeeping beside them."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._spool = Spool(settings.spool.path)
        self._ledger = ledger
        self._deliverers = [Deliverer(d, settings=settings, ledger=ledger) for d in settings.destinations]
        self._reconciler = Reconciler(
            assembly=settings.assembly, spool=self._spool, ledger=ledger, dispatcher=Dispatcher(settings)
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        pauses = self._settings.delivery
        loops: list[tuple[Callable[[], object], float]] = [
            (self._reconciler.step, pauses.reconcile_seconds),
            (self.take_reports, pauses.poll_seconds),
            (self.drop_outputs, pauses.reconcile_seconds),
            *((deliverer.step, pauses.poll_seconds) for deliverer in self._deliverers),
        ]
        threads = [threading.Thread(target=_repeat, args=(*loop, stop)) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def take_reports(self) -> None:
        """Bring commitment reports from the spool, where the node keeps them, to the ledger."""
        for report in self._spool.reports():
            self._ledger.commitment_reported(report)
            self._spool.drop_report(report.transaction_uid)

    def drop_outputs(self) -> None:
        """Remove the bytes of outputs that every destination has answered for."""
        trusted = [one.name for one in self._settings.destinations if one.verify == "none"]
        for output in self._ledger.outputs_to_drop(trusted=trusted):
            self._spool.drop_output(output.path)
            self._ledger.output_dropped(output.sop_instance_uid)


def _repeat(step: Callable[[], object], pause: float, stop: threading.Event) -> None:
    failures = 0
    while not stop.wait(min(pause * 2**failures, 30.0)):
        try:
            step()
        except (Retryable, OSError) as error:
            failures = min(failures + 1, 8)
            sentence = str(error) if isinstance(error, Retryable) else type(error).__name__
            log.warning("deliver_waits", why=sentence)
        else:
            failures = 0


def run_deliver(settings: Settings, stop: threading.Event) -> None:
    """Deliver and reconcile until `stop` is set.

    Raises:
        ConfigurationError: the database cannot be used.
    """
    with open_ledger(settings, migrate=True) as ledger:
        log.info("deliver_ready", destinations=len(settings.destinations))
        Office(settings, ledger).run(stop)
