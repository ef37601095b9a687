from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicom_node.query_scu import find_instances
from dicom_node.store_scu import Peer, PeerUnavailable

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def peer_that(serve: Callable[..., int], find: Callable[[evt.Event], Iterator[object]]) -> Peer:
    ae = AE("PACS")
    ae.add_supported_context(STUDY_ROOT_FIND)
    port = serve(ae, [(evt.EVT_C_FIND, find)])
    return Peer(ae_title="PACS", host="127.0.0.1", port=port, calling_ae="COVARIANCE", timeout=10.0)


def test_finds_what_the_peer_holds(serve: Callable[..., int]) -> None:
    """Of the objects asked for, those that the peer names in this series."""
    asked: list[tuple[str, str, str]] = []

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        query = event.identifier
        asked.append((query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID))
        for number in range(3):
            held = Dataset()
            held.QueryRetrieveLevel = "IMAGE"
            held.SOPInstanceUID = f"1.2.{number}"
            yield 0xFF00, held

    found = find_instances(peer_that(serve, find), "1.1", "1.1.1", ["1.2.1", "1.2.2", "1.2.9"])
    assert found == {"1.2.1", "1.2.2"}
    assert asked == [("IMAGE", "1.1", "1.1.1")]


def test_a_failed_query_is_no_empty_answer(serve: Callable[..., int]) -> None:
    """A peer that fails has not said that it holds nothing."""

    def find(_: evt.Event) -> Iterator[tuple[int, None]]:
        yield 0xA700, None

    with pytest.raises(PeerUnavailable, match="0xA700"):
        find_instances(peer_that(serve, find), "1.1", "1.1.1", ["1.2.1"])


def test_a_peer_that_breaks_off_is_unavailable(serve: Callable[..., int]) -> None:
    """An abort in mid answer is no answer."""

    def find(event: evt.Event) -> Iterator[tuple[int, None]]:
        event.assoc.abort()
        yield 0x0000, None

    with pytest.raises(PeerUnavailable, match="breaks off"):
        find_instances(peer_that(serve, find), "1.1", "1.1.1", ["1.2.1"])
