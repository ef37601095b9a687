"""How many studies came, by sender: now, and at the same time in earlier weeks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from worker.ledger.models import Image, Study
from worker.ledger.store import Store

Volumes = dict[str, dict[int, list[int]]]
"""By AE title of the sender, then by hours of the window: now, a week ago, two weeks ago..."""


class History(Store):
    """Raises Retryable when the database is away or busy."""

    def volumes(self, windows: Sequence[int], *, weeks: int, without: Collection[str] = ()) -> Volumes:
        """Count the studies of each sender in windows of hours that end now, and weeks before now.

        Weeks that began before the first study of all are left out. By the time of registration, which is
        indexed; it is seconds after the arrival while workers run.

        Args:
            windows: hours.
            weeks: how many earlier weeks are counted.
            without: senders that are left out.
        """
        with self._reading() as connection:
            now = self._now(connection)
            first = connection.execute(select(func.min(Study.registered_at))).scalar_one()
            if first is None:
                return {}
            longest = timedelta(hours=max(windows))
            ends = [now - timedelta(weeks=week) for week in range(weeks + 1)]
            ends = [now, *(end for end in ends[1:] if end - longest >= first)]
            found: Volumes = {}
            for number, end in enumerate(ends):
                for sender, at in _arrivals(connection, end - longest, end):
                    if sender in without:
                        continue
                    counts = found.setdefault(sender, {hours: [0] * len(ends) for hours in windows})
                    for hours in windows:
                        counts[hours][number] += at > end - timedelta(hours=hours)
        return found


def _arrivals(connection: Connection, after: datetime, until: datetime) -> list[tuple[str, datetime]]:
    """Sender and time of every study that was registered then; a study of two senders is one of each."""
    mine = Image.study_instance_uid == Study.study_instance_uid
    rows = (
        select(Image.calling_ae, Study.registered_at, Study.study_instance_uid)
        .join_from(Study, Image, mine)
        .where(Study.registered_at > after, Study.registered_at <= until)
        .distinct()
    )
    return [(row.calling_ae, row.registered_at) for row in connection.execute(rows)]
