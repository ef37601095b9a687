"""The walk through a received data set: four valid UIDs, or `UnreadableDataSet`.

The first byte picks the transfer syntax.
"""

from __future__ import annotations

from dataclasses import astuple

from dicom_node import uids
from dicom_node.header import UnreadableDataSet, read_identity

_SYNTAXES = uids.TRANSFER_SYNTAXES[:4]


def one_input(content: bytes) -> None:
    """Walk as the node does, in pieces from a file."""
    syntax, data_set = _SYNTAXES[(content or b"\0")[0] % len(_SYNTAXES)], content[1:]

    def read(offset: int, count: int) -> bytes:
        assert offset >= 0
        assert 0 < count <= 8192
        return data_set[offset : offset + count]

    try:
        identity = read_identity(read, len(data_set), syntax)
    except UnreadableDataSet:
        return
    assert all(map(uids.is_valid_uid, astuple(identity)))
