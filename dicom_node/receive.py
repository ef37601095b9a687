"""One C-STORE: from its command to a status, the data set going straight to the spool.

0x0000 is answered only for what is durable. Every failure of ours is A700, so that the sender tries
again; only what will never be readable is refused for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from dicom_node import metrics, tracing
from dicom_node.dimse import Command, Field
from dicom_node.durable import SpoolFull
from dicom_node.failpoints import reach
from dicom_node.header import UnreadableDataSet
from dicom_node.incoming import Arrival, Filed, Incoming, SpooledInstance
from dicom_node.logs import get_logger
from dicom_node.negotiation import Context
from dicom_node.routing import Router
from dicom_node.spool import Spool
from dicom_node.status import Status

log = get_logger("receive")

OnFiled = Callable[[SpooledInstance], None]


class StoreReception:
    """A C-STORE while its data set arrives."""

    def __init__(
        self,
        spool: Spool,
        *,
        command: Command,
        context: Context,
        arrival: tuple[str, str, str],
        maximum_bytes: int,
        router: Router,
        on_filed: OnFiled,
    ) -> None:
        self._sop_class_uid = command.uid(Field.AFFECTED_SOP_CLASS)
        self._sop_instance_uid = command.uid(Field.AFFECTED_SOP_INSTANCE)
        self._transfer_syntax_uid = context.transfer_syntax
        self._maximum_bytes = maximum_bytes
        self._router = router
        self._dimse_priority = command.number(Field.PRIORITY)
        self._on_filed = on_filed
        calling_ae, called_ae, address = arrival
        self._arrival = Arrival(
            calling_ae=calling_ae, called_ae=called_ae, address=address, received_at=datetime.now(UTC)
        )
        self._began = time.monotonic()
        self._refusal: Status | None = None
        self._incoming: Incoming | None = None
        if self._sop_class_uid != context.abstract_syntax:
            self._refuse(
                Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "class is not that of its context", "class_mismatch"
            )
        else:
            self._open(spool)

    def _open(self, spool: Spool) -> None:
        try:
            self._incoming = spool.receive()
        except Exception as error:  # noqa: BLE001 (C-STORE handler)
            self._refuse_for_want(error)

    def write(self, fragment: memoryview) -> None:
        """Take a part of the data set; after a refusal the rest of it only passes by."""
        if self._incoming is None:
            return
        try:
            self._incoming.write(fragment)
        except Exception as error:  # noqa: BLE001 (C-STORE handler)
            self._refuse_for_want(error)
        else:
            if self._incoming.size > self._maximum_bytes:
                why = "object larger than node.maximum_object_bytes"
                self._refuse(Status.OUT_OF_RESOURCES, why, "too_large")

    def finish(self) -> Status:
        """Make the object durable and announce it; return the status to answer."""
        incoming = self._incoming
        if incoming is None:
            return self._refusal or Status.OUT_OF_RESOURCES
        try:
            return self._file(incoming)
        except UnreadableDataSet as error:
            return self._refuse(Status.CANNOT_UNDERSTAND, str(error), "unreadable")
        except Exception as error:  # noqa: BLE001 (C-STORE handler)
            return self._refuse_for_want(error)
        finally:
            incoming.discard()

    def _file(self, incoming: Incoming) -> Status:
        identity = incoming.identity(self._transfer_syntax_uid)
        if (identity.sop_class_uid, identity.sop_instance_uid) != (
            self._sop_class_uid,
            self._sop_instance_uid,
        ):
            why = "data set is not what the command says"
            return self._refuse(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, why, "command_mismatch")
        instance, filed = incoming.file(identity, self._transfer_syntax_uid, self._in_lane(incoming))
        log.info(
            "object_filed",
            study=instance.study_instance_uid,
            object=instance.sop_instance_uid,
            filed=filed.value,
            size=instance.size,
            calling_ae=instance.calling_ae,
        )
        sender = metrics.SENDERS.label(instance.calling_ae)
        metrics.RECEIVED.labels(sender, filed.value, "").inc()
        metrics.RECEIVED_BYTES.labels(sender).inc(instance.size)
        seconds = time.monotonic() - self._began
        metrics.RECEIVE_SECONDS.observe(seconds)
        tracing.span("receive", instance.study_instance_uid, seconds=seconds)
        if filed is not Filed.DUPLICATE:
            self._announce(instance)
        reach("receive.before_response")
        return Status.SUCCESS

    def _in_lane(self, incoming: Incoming) -> Arrival:
        lane = self._router.lane(
            calling_ae=self._arrival.calling_ae,
            dimse_priority=self._dimse_priority,
            values=incoming.values(self._transfer_syntax_uid, self._router.tags),
        )
        return replace(self._arrival, lane=lane)

    def _announce(self, instance: SpooledInstance) -> None:
        try:
            self._on_filed(instance)
        except Exception as error:  # noqa: BLE001 (C-STORE handler)
            # It is on the disk, so it is ours: the reconciler finds what was not announced.
            log.error("object_not_announced", object=instance.sop_instance_uid, error=type(error).__name__)

    def _refuse_for_want(self, error: Exception) -> Status:
        reason = "spool_full" if isinstance(error, SpoolFull) else "storage_failed"
        return self._refuse(Status.OUT_OF_RESOURCES, type(error).__name__, reason)

    def _refuse(self, status: Status, why: str, reason: str) -> Status:
        self.discard()
        sender = metrics.SENDERS.label(self._arrival.calling_ae)
        metrics.RECEIVED.labels(sender, "refused", reason).inc()
        self._refusal = status
        log.warning(
            "object_refused",
            status=f"0x{status:04X}",
            why=why,
            calling_ae=self._arrival.calling_ae,
            address=self._arrival.address,
        )
        return status

    def discard(self) -> None:
        """Forget what has arrived; nothing of it stays on the disk."""
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None
