"""Query SCU: which objects a peer holds (C-FIND, study root, PS3.4 C.6.2)."""

from __future__ import annotations

from collections.abc import Collection

from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.data_set import decode_data_set, encode_data_set
from dicom_node.dimse import Command, Field, Operation
from dicom_node.requestor import Peer, PeerUnavailable, Requestor
from dicom_node.wire import ConnectionLost, ProtocolError

_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_MEDIUM = 0
_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4
_SYNTAXES = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


def find_instances(
    peer: Peer, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Collection[str]
) -> set[str]:
    """Which of the objects the peer says it holds in this study and series.

    Raises:
        PeerUnavailable: there is no association, or no complete answer.
    """
    with Requestor(peer, [(_STUDY_ROOT_FIND, _SYNTAXES)]) as association:
        context = association.context_for(_STUDY_ROOT_FIND)
        if context is None:
            raise PeerUnavailable(f"{peer.ae_title} does not offer C-FIND at the study root")
        request = Command(
            {
                Field.AFFECTED_SOP_CLASS: _STUDY_ROOT_FIND,
                Field.COMMAND: Operation.C_FIND_RQ,
                Field.PRIORITY: _MEDIUM,
            }
        )
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID = study_instance_uid
        identifier.SeriesInstanceUID = series_instance_uid
        identifier.SOPInstanceUID = ""  # all of the series: lists of UIDs are not matched everywhere
        found: set[str] = set()
        try:
            encoded = encode_data_set(identifier, context.transfer_syntax)
            for response in association.exchange(context, request, encoded):
                status = response.command.number(Field.STATUS)
                if status not in _PENDING:
                    break
                held = decode_data_set(response.data_set, context.transfer_syntax)
                found.add(str(held.get("SOPInstanceUID", "")))
        except (ConnectionLost, ProtocolError) as error:
            raise PeerUnavailable(f"{peer.ae_title} breaks off a C-FIND: {error}") from error
        if status != 0:
            raise PeerUnavailable(f"{peer.ae_title} answers C-FIND with status 0x{status or 0:04X}")
    return found & set(sop_instance_uids)
