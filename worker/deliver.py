"""Write-back: one deliverer a destination sends, asks for proof, and tries again without an end.

States are in the ledger, so that a restart forgets nothing. An unknown outcome is answered by
sending the same bytes again: the object has the same UID and is the same object.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from dicom_node import tracing
from dicom_node.failpoints import reach
from dicom_node.logs import get_logger
from dicom_node.query_scu import find_instances
from dicom_node.status import NextStep, next_step_of
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import EXPLICIT_VR_LITTLE_ENDIAN
from worker import metrics
from worker.ledger import DueDelivery, Ledger, Proven
from worker.ledger.store import Clock, utcnow
from worker.settings import DeliverySection, Destination, Settings
from worker.stations import station

log = get_logger("deliver")

_RECORD_SECONDS = 1.0
"""The longest that an object is stored at a slow destination before the ledger knows."""

_QUERY_SECONDS = 10.0
"""A slow query service is asked no longer than that, and then it is looked for what is to be sent."""

_ASK_PAUSE = timedelta(seconds=1)
"""Between two looks for what proof is still to be asked of, while nothing is sent."""


def backoff(attempts: int, settings: DeliverySection) -> timedelta:
    """Pause before the next try: doubled each time up to the cap, with jitter so that retries spread."""
    doubled = settings.backoff_first * 2.0 ** min(attempts, 32)
    return timedelta(seconds=min(doubled, settings.backoff_cap) * random.uniform(0.75, 1.25))


class Breaker:
    """Keeps us from a peer that does not serve us, for a longer while each time."""

    def __init__(self, settings: DeliverySection) -> None:
        self._settings = settings
        self._failures = 0
        self._pause = timedelta()
        self._until = datetime.min.replace(tzinfo=UTC)

    def is_open(self, now: datetime) -> bool:
        """Whether the peer is to be left alone."""
        # A clock that was set back must not keep us away for longer than the pause was.
        return self._until - self._pause <= now < self._until

    def trip(self, now: datetime) -> timedelta:
        """Leave the peer alone; return for how long."""
        self._pause = backoff(self._failures, self._settings)
        self._until = now + self._pause
        self._failures += 1
        return self._pause

    def reset(self) -> None:
        """The peer serves us: the next pause is the shortest again."""
        self._failures = 0


class Deliverer:
    """Brings one destination up to date, a look at a time."""

    def __init__(
        self, destination: Destination, *, settings: Settings, ledger: Ledger, clock: Clock = utcnow
    ) -> None:
        self._destination = destination
        self._settings = settings.delivery
        self._ledger = ledger
        self._peer = Peer(
            ae_title=destination.ae_title,
            host=destination.host,
            port=destination.port,
            calling_ae=settings.node.ae_title,
            timeout=settings.delivery.timeout,
            tls=destination.tls.as_client() if destination.tls else None,
        )
        self._clock = clock
        metrics.know_destination(destination.name)
        # A query service that is away must not keep results from the archive beside it.
        self._sending, self._querying = Breaker(self._settings), Breaker(self._settings)
        self._looked: datetime | None = None

    def step(self) -> bool:
        """Send what is due and ask for proof of what is stored; nothing while a breaker is open.

        Returns:
            Whether objects were due.
        """
        worked = not self._sending.is_open(self._clock()) and self._send()
        if self._destination.verify == "find" and not self._querying.is_open(self._clock()):
            self._find()
        return worked

    def _send(self) -> bool:
        name = self._destination.name
        due = self._ledger.due_deliveries(name, limit=self._settings.batch)
        if not due and not self._owes_a_question():
            return False
        # After a send there may be more to ask about than one request does.
        self._looked = None
        try:
            self._associate(due)
        except PeerUnavailable as error:
            pause = self._sending.trip(self._clock())
            self._ledger.deliveries_retry([delivery.delivery_id for delivery in due], None, pause)
            metrics.REACHABLE.labels(name).set(0)
            log.warning("destination_unavailable", destination=name, why=str(error))
        else:
            self._sending.reset()
            metrics.REACHABLE.labels(name).set(1)
        return bool(due)

    def _owes_a_question(self) -> bool:
        """Whether there is something stored that no open request asks about; looked for now and then."""
        now = self._clock()
        # A clock that was set back must not keep us from looking for longer than the pause is.
        if self._looked is not None and self._looked <= now < self._looked + _ASK_PAUSE:
            return False
        self._looked = now
        proof = self._destination.verify == "commitment"
        return proof and bool(self._ledger.stored_unverified(self._destination.name, limit=1))

    def _associate(self, due: Sequence[DueDelivery]) -> None:
        due = [delivery for delivery in due if self._is_intact(delivery)]
        items = [_item(delivery) for delivery in due]
        commitment = self._destination.verify == "commitment"
        with StoreAssociation(self._peer, items, commitment=commitment) as association:
            self._send_all(association, list(zip(due, items, strict=True)))
            # Where an object ended the association, nothing is asked; it is on the next one.
            if commitment and association.is_open:
                self._request_commitment(association)

    def _send_all(
        self, association: StoreAssociation, objects: Sequence[tuple[DueDelivery, SendItem]]
    ) -> None:
        # Recorded together: what a crash in between forgets is sent again, and is the same object.
        stored: dict[int, int] = {}
        waiting = {delivery.delivery_id for delivery, _ in objects}
        record_at = time.monotonic() + _RECORD_SECONDS
        try:
            for delivery, item in objects:
                if delivery.delivery_id not in waiting:
                    continue
                reach("deliver.before_store")
                with station("store", delivery.study_instance_uid):
                    status = association.send(item).status
                reach("deliver.after_response")
                if status is not None and next_step_of(status) is NextStep.STORED:
                    stored[delivery.delivery_id] = status
                    self._count("stored")
                    log.info(
                        "object_stored",
                        study=delivery.study_instance_uid,
                        object=delivery.sop_instance_uid,
                        destination=self._destination.name,
                    )
                else:
                    self._settle(delivery, status)
                if time.monotonic() >= record_at:
                    self._ledger.deliveries_sent(stored)
                    stored.clear()
                    # A newer result, a recall or another patient's film may have come meanwhile.
                    waiting = self._ledger.still_due(waiting)
                    record_at = time.monotonic() + _RECORD_SECONDS
        finally:
            self._ledger.deliveries_sent(stored)
        reach("deliver.after_record")

    def _is_intact(self, delivery: DueDelivery) -> bool:
        """Whether the outbox still holds the bytes that the ledger recorded; nothing else is ever sent."""
        try:
            digest = hashlib.sha256(delivery.path.read_bytes()).hexdigest()
        except FileNotFoundError:
            digest = ""
        except OSError as error:
            # The disk may give it back later; the others must not wait for that.
            log.error(
                "output_unreadable",
                study=delivery.study_instance_uid,
                object=delivery.sop_instance_uid,
                error=type(error).__name__,
            )
            pause = backoff(delivery.attempts, self._settings)
            self._ledger.delivery_retry(delivery.delivery_id, None, pause)
            return False
        if digest == delivery.sha256:
            return True
        sentence = (
            "The outbox no longer holds the bytes that were recorded: restore the file and run "
            "`covariance retry`, or send the study again as new instances."
        )
        self._ledger.delivery_failed(delivery.delivery_id, None, sentence)
        self._count("failed")
        log.error("output_damaged", study=delivery.study_instance_uid, object=delivery.sop_instance_uid)
        return False

    def _settle(self, delivery: DueDelivery, status: int | None) -> None:
        """Record that an object is not stored, and what follows from the answer."""
        # No answer: nobody knows whether it was stored, and the same bytes again do no harm.
        step = NextStep.RETRY if status is None else next_step_of(status)
        # A PACS that starts up says "cannot understand" as well: only a no that is repeated is one.
        patience_ends = delivery.refusals + 1 >= self._settings.permanent_attempts
        match step, status:
            case NextStep.PARK, int():
                self._ledger.delivery_parked(delivery.delivery_id, status)
                self._count("parked")
            case NextStep.DEAD_LETTER, int() if patience_ends:
                sentence = f"{self._destination.name} refuses the object with status 0x{status:04X}."
                self._ledger.delivery_failed(delivery.delivery_id, status, sentence)
                self._count("failed")
            case _:
                refused = step is NextStep.DEAD_LETTER
                tries = delivery.refusals if refused else delivery.attempts
                pause = backoff(tries, self._settings)
                self._ledger.delivery_retry(delivery.delivery_id, status, pause, refused=refused)
                self._count("no_answer" if status is None else "retry")
        log.warning(
            "object_not_stored",
            study=delivery.study_instance_uid,
            destination=self._destination.name,
            object=delivery.sop_instance_uid,
            status="none" if status is None else f"0x{status:04X}",
            step=step.name.lower(),
        )

    def _request_commitment(self, association: StoreAssociation) -> None:
        stored = self._ledger.stored_unverified(self._destination.name, limit=self._settings.batch)
        if not stored:
            return
        transaction = f"2.25.{uuid.uuid4().int}"
        patience = timedelta(seconds=self._destination.commitment_timeout)
        # Recorded before it is asked: the report may come back before the response does.
        self._ledger.request_commitment([one.delivery_id for one in stored], transaction, patience)
        reach("deliver.before_commitment")
        with station("commit"):
            status = association.request_commitment(
                transaction, [(one.sop_class_uid, one.sop_instance_uid) for one in stored]
            )
        reach("deliver.after_commitment")
        if status:
            self._ledger.commitment_refused(transaction, status)
        if status != 0:
            log.warning("commitment_not_accepted", destination=self._destination.name, status=status)

    def _find(self) -> None:
        name = self._destination.name
        series: dict[tuple[str, str], list[DueDelivery]] = {}
        for one in self._ledger.stored_unverified(name, limit=self._settings.batch):
            series.setdefault((one.study_instance_uid, one.series_instance_uid), []).append(one)
        queries = list(series.items())
        ends_at = time.monotonic() + _QUERY_SECONDS
        # One study that the peer chokes on must not keep the same others from proof each time.
        random.shuffle(queries)
        try:
            for uids, stored in queries:
                found = find_instances(self._peer, *uids, [one.sop_instance_uid for one in stored])
                self._querying.reset()
                self._note_found(stored, found)
                if time.monotonic() >= ends_at:
                    break
        except PeerUnavailable as error:
            self._querying.trip(self._clock())
            log.warning("query_unavailable", destination=name, why=str(error))

    def _note_found(self, stored: Sequence[DueDelivery], found: set[str]) -> None:
        for one in stored:
            if one.sop_instance_uid in found:
                if proven := self._ledger.delivery_verified(one.delivery_id):
                    tell_proven(proven, "verified")
            else:
                self._ledger.delivery_missing(one.delivery_id, backoff(one.attempts, self._settings))
                self._count("missing")

    def _count(self, status: str) -> None:
        metrics.DELIVERIES.labels(self._destination.name, status).inc()


def tell_proven(proven: Proven, status: Literal["committed", "verified"]) -> None:
    """Count and log that a destination has shown that it holds an object."""
    metrics.DELIVERIES.labels(proven.destination, status).inc()
    tracing.span("prove", proven.study_instance_uid, seconds=proven.seconds)
    metrics.COMMITMENT_SECONDS.labels(proven.destination).observe(proven.seconds)
    log.info(
        "object_proven",
        by=status,
        study=proven.study_instance_uid,
        object=proven.sop_instance_uid,
        destination=proven.destination,
    )


def _item(delivery: DueDelivery) -> SendItem:
    return SendItem(
        sop_class_uid=delivery.sop_class_uid,
        sop_instance_uid=delivery.sop_instance_uid,
        transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
        path=delivery.path,
    )
