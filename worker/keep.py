"""The outbox's copy of an output: exact bytes on the disk before anything says that they are to go out."""

from __future__ import annotations

from dicom_node.errors import Retryable
from dicom_node.spool import Spool
from worker.findings import KeptOutput, Output


def keep(spool: Spool, study_instance_uid: str, output: Output) -> KeptOutput:
    """Write an output into the outbox.

    Raises:
        Retryable: the disk does not take it.
    """
    try:
        path = spool.outbox.keep(
            study_instance_uid, output.sop_instance_uid, output.content, sha256=output.sha256
        )
    except OSError as error:
        raise Retryable(f"The outbox cannot be written: {type(error).__name__} {error.errno}.") from None
    return KeptOutput(
        role=output.role,
        sop_class_uid=output.sop_class_uid,
        sop_instance_uid=output.sop_instance_uid,
        series_instance_uid=output.series_instance_uid,
        sha256=output.sha256,
        path=path,
    )
