"""How messages are cut into PDUs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dicom_node.wire import PDU_HEADER, PDV_HEADER, Control, p_data


def pdus(stream: bytes) -> list[bytes]:
    """What stands behind the header of each PDU."""
    found = []
    while stream:
        _, length = PDU_HEADER.unpack(stream[: PDU_HEADER.size])
        found.append(stream[PDU_HEADER.size : PDU_HEADER.size + length])
        stream = stream[PDU_HEADER.size + length :]
    return found


@pytest.mark.parametrize("maximum", [8, 9, 16, 4_097, 16_383, 16_384])
def test_fragments_are_even_and_no_longer_than_the_peer_takes(maximum):
    """DCMTK ends an association at a fragment of odd length."""
    content = bytes(range(250)) * 200
    found = pdus(p_data(3, Control.COMMAND, content, maximum))
    assert b"".join(one[PDV_HEADER.size :] for one in found) == content
    assert all(len(one) <= maximum and not len(one) % 2 for one in found)
    assert all(len(before) >= len(after) for before, after in pairwise(found))


def test_a_peer_without_a_maximum_gets_a_message_in_one_piece():
    """A maximum of 0 is none (PS3.8 D.1), and not the smallest."""
    assert len(pdus(p_data(1, Control.COMMAND, bytes(150), 0))) == 1
