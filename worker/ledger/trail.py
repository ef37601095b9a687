"""The audit trail for those who copy it elsewhere: its head, its events in order, and how far they came."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from worker.ledger.audit import ChainHead, read_head
from worker.ledger.models import Cursor, Event
from worker.ledger.records import TrailEvent
from worker.ledger.store import Store


class Trail(Store):
    """All raise Retryable when the database is away or busy."""

    def head(self) -> ChainHead:
        """Where the chain ends now."""
        with self._reading() as connection:
            return read_head(connection)

    def holds(self, head: ChainHead) -> bool:
        """Whether the chain, however long it is now, once ended like this."""
        if head.events == 0:
            return head == ChainHead()
        with self._reading() as connection:
            seal = select(Event.hash).where(Event.seq == head.events)
            return connection.execute(seal).scalar_one_or_none() == head.hash

    def events_after(self, seq: int, limit: int) -> list[TrailEvent]:
        """The next events, oldest first."""
        columns = (Event.seq, Event.at, Event.kind, Event.study_instance_uid, Event.body, Event.hash)
        following = select(*columns).where(Event.seq > seq).order_by(Event.seq).limit(limit)
        with self._reading() as connection:
            return [TrailEvent(**row._mapping) for row in connection.execute(following)]

    def read_up_to(self, reader: str) -> int:
        """The last event that this reader has taken over; 0 for a new reader."""
        with self._reading() as connection:
            cursor = select(Cursor.seq).where(Cursor.reader == reader)
            return connection.execute(cursor).scalar_one_or_none() or 0

    def note_read(self, reader: str, seq: int) -> None:
        """Note that this reader has taken over all events up to `seq`."""
        with self._writing() as writer:
            moved = update(Cursor).where(Cursor.reader == reader).values(seq=seq).returning(Cursor.seq)
            if writer.execute(moved).one_or_none() is None:
                writer.execute(insert(Cursor), [{"reader": reader, "seq": seq}])
