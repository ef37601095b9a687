"""Small data sets of DIMSE messages, by pydicom: what is asked of queries, actions and events."""

from __future__ import annotations

import io
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from dicom_node import uids
from dicom_node.wire import ProtocolError


def encode_data_set(content: Dataset, transfer_syntax_uid: str) -> bytes:
    """Encode a data set of ours."""
    encoded = encode(content, *_shape(transfer_syntax_uid))
    if encoded is None:
        raise ValueError("the data set cannot be encoded")
    return cast("bytes", encoded)


def decode_data_set(content: bytes, transfer_syntax_uid: str) -> Dataset:
    """Decode a data set of a peer, to its last element. Raises `ProtocolError`."""
    try:
        decoded: Dataset = decode(io.BytesIO(content), *_shape(transfer_syntax_uid))
        decoded.walk(lambda _, __: None)  # elements are converted when they are first looked at
    except Exception as error:  # pydicom raises almost anything on hostile bytes
        raise ProtocolError("a data set of the peer cannot be read") from error
    return decoded


def _shape(transfer_syntax_uid: str) -> tuple[bool, bool]:
    """Whether a syntax has implicit VR, and whether it is little-endian."""
    return (
        transfer_syntax_uid == uids.IMPLICIT_VR_LITTLE_ENDIAN,
        transfer_syntax_uid != uids.EXPLICIT_VR_BIG_ENDIAN,
    )
