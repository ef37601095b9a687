"""Sends the audit trail to a syslog server, from where it was read last: at least once, and in order."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from dicom_node.errors import Retryable
from dicom_node.logs import get_logger
from worker import metrics
from worker.audit_alerts import security_alert
from worker.audit_elements import Us
from worker.audit_messages import application_activity, messages
from worker.ledger import Kind, Ledger, TrailEvent
from worker.ledger.store import Clock, utcnow
from worker.settings import Destination, Settings
from worker.syslog import SyslogServer, frame

log = get_logger("audit_export")

_READER = "syslog"
_BATCH = 200
"""Events over one connection."""
_BATCHES = 20
"""Connections at one step: a stop waits for no more."""
_KINDS = frozenset(Kind)


class AuditExport:
    """Reads the trail behind a cursor in the database, which moves when the server has read the messages.

    A server that is away costs nothing but time: the events wait where they are. Whatever goes wrong here
    has a thread of its own, and delivery goes on.
    """

    def __init__(self, settings: Settings, ledger: Ledger, *, clock: Clock = utcnow) -> None:
        """Raises ConfigurationError when a certificate or key cannot be used."""
        self._server = SyslogServer(settings.audit)
        self._destinations: Mapping[str, Destination] = {one.name: one for one in settings.destinations}
        self._ledger = ledger
        self._clock = clock
        host = re.sub(r"[^\x21-\x7e]", "", socket.gethostname())[:255] or "-"
        self._us = Us(ae_title=settings.node.ae_title, host=host)
        self._reached = False
        self._urgent: dict[str, bytes] = {"start": self._activity(starts=True)}

    def step(self) -> bool:
        """Send what is new, batch by batch; True when there was something.

        Raises:
            Retryable: server or database are away; the batch is sent again.
        """
        cursor = self._ledger.read_up_to(_READER)
        self._waits_behind(cursor)
        for batch in range(_BATCHES):
            events = self._send_next(cursor)
            if events:
                cursor = events[-1].seq
                self._ledger.note_read(_READER, cursor)
                self._waits_behind(cursor)
            if len(events) < _BATCH:
                return bool(batch or events)
        return True

    def _send_next(self, cursor: int) -> list[TrailEvent]:
        urgent = dict(self._urgent)
        events = self._ledger.events_after(cursor, _BATCH)
        frames = [*urgent.values()]
        for event in events:
            frames += [frame(message, at=event.at, host=self._us.host) for message in self._told(event)]
        if frames:
            self._reached = False
            self._server.send(frames)
            self._reached = True
        for name in urgent:
            del self._urgent[name]
        return events

    def _waits_behind(self, cursor: int) -> None:
        metrics.AUDIT_UNEXPORTED.set(max(self._ledger.head().events - cursor, 0))

    def alarm(self, sentence: str) -> None:
        """Have a security alert sent with the next step; the same one is sent once a step."""
        at = self._now()
        self._urgent[sentence] = frame(security_alert(self._us, at, sentence), at=at, host=self._us.host)

    def stop(self) -> None:
        """Tell the server that we stop, if it answered last: a stop does not wait for one that is away."""
        if self._reached:
            try:
                self._server.send([self._activity(starts=False)])
            except Retryable as error:
                log.warning("stop_not_told", why=str(error))

    def _told(self, event: TrailEvent) -> list[bytes]:
        if event.kind not in _KINDS and self._ledger.schema().compatible:
            # Written by a later version, beside which this one may work: no forgery, and not ours to tell.
            log.warning("event_of_a_later_version", seq=event.seq)
            return []
        try:
            return messages(event, self._us, self._destinations)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # Somebody wrote it who is not us. It must not keep all that follow from being told.
            log.error("event_not_told", seq=event.seq, error=type(error).__name__)
            sentence = f"Event {event.seq} of the audit trail is not of the form that its kind has."
            return [security_alert(self._us, self._now(), sentence)]

    def _activity(self, *, starts: bool) -> bytes:
        at = self._now()
        return frame(application_activity(self._us, at, starts=starts), at=at, host=self._us.host)

    def _now(self) -> str:
        return self._clock().isoformat(timespec="microseconds")
