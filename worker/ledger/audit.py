"""The audit trail: a chain of events in which no row can be changed, removed or put in unseen.

`hash` is the SHA-256 over canonical JSON of all other columns, the hash of the event before among
them. Whoever keeps a `ChainHead` elsewhere (a log, a signed mail) also sees when the end of the
chain is cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from worker.ledger.models import Event

GENESIS = "0" * 64
_SEALED = ("seq", "at", "kind", "study_instance_uid", "body", "previous")
_PAGE = 2000


class Kind(StrEnum):
    """What happened."""

    REGISTERED = "registered"
    CLAIMED = "claimed"
    RELEASED = "released"
    RECORDED = "recorded"
    UNCHANGED = "unchanged"
    FINISHED_WITHOUT_RESULT = "finished_without_result"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"
    STORED = "stored"
    NOT_STORED = "not_stored"
    FAILED = "failed"
    PARKED = "parked"
    COMMITMENT_REQUESTED = "commitment_requested"
    COMMITMENT_REFUSED = "commitment_refused"
    COMMITTED = "committed"
    COMMITMENT_FAILED = "commitment_failed"
    VERIFIED = "verified"
    NOT_FOUND = "not_found"
    RETRIED = "retried"
    HASTENED = "hastened"
    """Somebody released a study that was to wait longer."""
    OUTPUT_DROPPED = "output_dropped"
    PURGED = "purged"
    CAME_AGAIN = "came_again"
    """Images that were purged are in the spool once more."""
    RECALLED = "recalled"
    """A result of a withdrawn model; without a study: the model itself."""
    MODEL_ACTIVATED = "model_activated"
    """A bundle is in use from the next start of a worker."""
    REFUSED = "refused"
    """Peers were not let in: a window of refusals."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """An event that is to be appended."""

    kind: Kind
    study_instance_uid: str | None
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChainHead:
    """How long the chain is, and the hash that it ends with. Keep it elsewhere to see a cut end."""

    events: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a walk along the chain found."""

    events: int
    ok: bool
    first_bad_seq: int | None
    sentence: str
    head: ChainHead
    """The last event that was found sound."""


def append(connection: Connection, at: datetime, notes: Sequence[Note]) -> None:
    """Seal the notes and add them; the caller holds the writer's lock."""
    if not notes:
        return
    head = read_head(connection)
    rows, stamp = [], _plain(at)
    for seq, note in enumerate(notes, start=head.events + 1):
        row = {
            "seq": seq,
            "at": stamp,
            "kind": note.kind.value,
            "study_instance_uid": note.study_instance_uid,
            "body": _canonical(note.body, default=_plain),
            "previous": head.hash,
        }
        head = ChainHead(events=seq, hash=_seal(row))
        rows.append(row | {"hash": head.hash})
    connection.execute(insert(Event), rows)


def read_head(connection: Connection) -> ChainHead:
    """Where the chain ends now."""
    last = connection.execute(select(Event.seq, Event.hash).order_by(Event.seq.desc()).limit(1)).one_or_none()
    return ChainHead() if last is None else ChainHead(events=last.seq, hash=last.hash)


def verify_chain(
    reading: Callable[[], AbstractContextManager[Connection]],
    noted: Mapping[ChainHead, str],
    progress: Callable[[int], object],
) -> Verification:
    """Walk the whole chain, a page at a time, and past every head that was noted."""
    head, ahead = ChainHead(), sorted(noted, key=lambda one: one.events, reverse=True)
    for event in _events(reading):
        wrong = _fault(event, head)
        while wrong is None and ahead and ahead[-1].events <= event.seq:
            here = ahead.pop()
            if here not in (head, ChainHead(events=event.seq, hash=event.hash)):
                wrong = f"is not the one that was noted ({noted[here]})"
        if wrong is not None:
            return _broken(head, f"Event {event.seq} {wrong}.", seq=event.seq)
        head = ChainHead(events=event.seq, hash=event.hash)
        if head.events % _PAGE == 0:
            progress(head.events)
    progress(head.events)
    missing = next((one for one in reversed(ahead) if one != head), None)
    if missing is not None:
        ends = f"The chain ends after event {head.events}"
        return _broken(
            head, f"{ends}, but {missing.events} were noted ({noted[missing]}).", seq=head.events + 1
        )
    sentence = f"All {head.events} events are as they were written."
    return Verification(events=head.events, ok=True, first_bad_seq=None, sentence=sentence, head=head)


def verify_next(
    reading: Callable[[], AbstractContextManager[Connection]], head: ChainHead, limit: int
) -> Verification:
    """Look at the events behind one that was found sound, and whether that one still stands."""
    here = select(Event.hash).where(Event.seq == head.events)
    page = select(Event.__table__).where(Event.seq > head.events).order_by(Event.seq).limit(limit)
    with reading() as connection:
        if head.events and connection.execute(here).scalar_one_or_none() != head.hash:
            return _broken(head, f"Event {head.events} is not as it was found.", seq=head.events)
        rows = connection.execute(page).all()
    for event in rows:
        if wrong := _fault(event, head):
            return _broken(head, f"Event {event.seq} {wrong}.", seq=event.seq)
        head = ChainHead(events=event.seq, hash=event.hash)
    sentence = f"Event {head.events} and those before it are as they were found."
    return Verification(events=head.events, ok=True, first_bad_seq=None, sentence=sentence, head=head)


def _broken(head: ChainHead, sentence: str, *, seq: int) -> Verification:
    return Verification(events=head.events, ok=False, first_bad_seq=seq, sentence=sentence, head=head)


def _events(reading: Callable[[], AbstractContextManager[Connection]]) -> Iterator[Row[Any]]:
    # Pages by key, not a cursor: memory stays small on both databases and no lock is held for long.
    after = None
    page = select(Event.__table__).order_by(Event.seq).limit(_PAGE)
    while True:
        with reading() as connection:
            rows = connection.execute(page if after is None else page.where(Event.seq > after)).all()
        if not rows:
            return
        yield from rows
        after = rows[-1].seq


def _fault(event: Row[Any], head: ChainHead) -> str | None:
    if event.seq != head.events + 1:
        return f"follows event {head.events}: what was between them is missing"
    if event.previous != head.hash:
        return "does not follow from the one before it"
    return "was changed" if _seal(event._asdict()) != event.hash else None


def _seal(row: Mapping[str, Any]) -> str:
    # `repr` for whatever a forger put into a column: it must be found, not stop the walk.
    sealed = _canonical([row[name] for name in _SEALED], default=repr)
    return hashlib.sha256(sealed.encode()).hexdigest()


def _canonical(value: object, *, default: Callable[[Any], str]) -> str:
    # ASCII, so that no database's text encoding can alter what was hashed.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=default)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    raise TypeError(f"{type(value).__name__} has no place in an event")
