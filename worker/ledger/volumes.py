"""How many studies came, by sender: now, and at the same time in earlier weeks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, case, func, select

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
                for sender, *counts in connection.execute(_counted(windows, end, without)):
                    mine = found.setdefault(sender, {hours: [0] * len(ends) for hours in windows})
                    for hours, studies in zip(windows, counts, strict=True):
                        mine[hours][number] = studies
        return found


def _counted(windows: Sequence[int], end: datetime, without: Collection[str]) -> Select[Any]:
    """A row a sender, of those that sent, with a count a window; a study of two senders is one of each.

    The database counts: rows of every study would be made into objects while the exporter waits.
    """
    starts = [end - timedelta(hours=hours) for hours in windows]
    arrived = (
        select(Image.calling_ae, Study.registered_at, Study.study_instance_uid)
        .join_from(Study, Image, Image.study_instance_uid == Study.study_instance_uid)
        .where(Study.registered_at > min(starts), Study.registered_at <= end)
        .where(Image.calling_ae.not_in(without))
        .distinct()
        .subquery()
    )
    counts = [func.sum(case((arrived.c.registered_at > start, 1), else_=0)) for start in starts]
    return select(arrived.c.calling_ae, *counts).group_by(arrived.c.calling_ae)
