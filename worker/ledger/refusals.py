"""Who was refused at the node's door: a window each, taken into the audit trail once."""

from __future__ import annotations

from sqlalchemy import insert, select

from dicom_node.refusals import RefusalWindow
from worker.ledger.audit import Kind
from worker.ledger.models import TakenWindow
from worker.ledger.store import Store


class Refusals(Store):
    """All raise Retryable when the database is away or busy."""

    def take_refusals(self, window: RefusalWindow) -> bool:
        """Add a window to the audit trail; False where it is there already."""
        with self._writing() as writer:
            # The writers' lock is held: nobody takes it between the question and the answer.
            known = select(TakenWindow.name).where(TakenWindow.name == window.name)
            if writer.execute(known).one_or_none() is not None:
                return False
            writer.execute(insert(TakenWindow), [{"name": window.name, "taken_at": writer.now}])
            writer.note(Kind.REFUSED, None, **window.model_dump(mode="json"))
            return True
