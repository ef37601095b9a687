"""What a model made of its first studies here, and of the last ones."""

from __future__ import annotations

from sqlalchemy import Connection, Select, exists, select

from worker.drift import Seen
from worker.ledger.models import Disposition, Image, Result
from worker.ledger.store import Store

_CHUNK = 500


class Populations(Store):
    """Raises Retryable when the database is away or busy."""

    def populations(self, *, first: int, last: int, without: str) -> tuple[list[Seen], list[Seen]]:
        """Images of the first and of the last studies of the model that made the last result.

        Args:
            first: how many studies are the reference.
            last: how many studies are compared with it, none of which is in the reference.
            without: a sender whose studies are left out.
        """
        with self._reading() as connection:
            newest = select(Result.configuration).order_by(Result.id.desc()).limit(1)
            configuration = connection.execute(newest).scalar_one_or_none()
            if configuration is None:
                return [], []
            theirs = (Image.study_instance_uid == Result.study_instance_uid, Image.calling_ae == without)
            mine = select(Result.study_instance_uid).where(
                Result.configuration == configuration, ~exists().where(*theirs)
            )
            reference = _studies(connection, mine.order_by(Result.recorded_at, Result.id).limit(first))
            newest_first = mine.order_by(Result.recorded_at.desc(), Result.id.desc()).limit(last)
            current = _studies(connection, newest_first) - reference
            return _seen(connection, reference), _seen(connection, current)


def _studies(connection: Connection, query: Select[str]) -> set[str]:
    return set(connection.execute(query).scalars())


def _seen(connection: Connection, studies: set[str]) -> list[Seen]:
    found: list[Seen] = []
    wanted = sorted(studies)
    columns = (Image.calling_ae, Image.manufacturer, Image.view, Image.probability, Image.reason)
    for start in range(0, len(wanted), _CHUNK):
        among = Image.study_instance_uid.in_(wanted[start : start + _CHUNK])
        ended = select(*columns).where(among, Image.disposition != Disposition.PENDING)
        for sender, manufacturer, view, probability, reason in connection.execute(ended):
            found.append(
                Seen(
                    sender=sender,
                    manufacturer=manufacturer or "unknown",
                    view=view or "unknown",
                    probability=probability,
                    reason=reason,
                )
            )
    return found
