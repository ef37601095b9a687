from __future__ import annotations

import pytest
from pydantic import ValidationError

from dicom_node.callers import AllowList, Origin
from dicom_node.settings import Caller, NodeSection

CERTIFICATE = "ab" * 32
COLONS = ":".join(["AB"] * 32)


def bound(**values: object) -> AllowList:
    return AllowList((), [Caller(ae_title="CT1", **values)])


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.0.0.5", True),
        ("10.0.0.6", False),
        ("192.0.2.77", True),
        ("192.0.3.1", False),
        ("::ffff:10.0.0.5", True),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%2", False),
    ],
)
def test_an_address_or_a_network_is_admitted(address: str, admitted: bool) -> None:
    """A title is bound to single addresses and to networks, of both families."""
    callers = bound(addresses=["10.0.0.5", "192.0.2.0/24", "2001:db8::/32"])
    assert callers.admits("CT1", Origin(address=address)) is admitted


def test_without_a_list_anyone_is_admitted() -> None:
    """An empty list keeps nobody out."""
    assert AllowList((), ()).admits("CT1", Origin(address="10.0.0.5"))


def test_one_entry_keeps_everybody_else_out() -> None:
    """As soon as one title is named, the others may not send."""
    for callers in (AllowList(["CT1 "], ()), bound()):
        assert callers.admits("CT1", Origin(address="10.0.0.5"))
        assert not callers.admits("CT2", Origin(address="10.0.0.5"))


@pytest.mark.parametrize("written", [CERTIFICATE, COLONS, CERTIFICATE.upper()])
def test_a_certificate_is_admitted_however_it_is_written(written: str) -> None:
    """A fingerprint with colons or in capitals is the same; another one, or none, is not."""
    callers = bound(certificate_sha256=written)
    assert callers.admits("CT1", Origin(address="10.0.0.5", certificate=CERTIFICATE))
    assert not callers.admits("CT1", Origin(address="10.0.0.5", certificate="cd" * 32))
    assert not callers.admits("CT1", Origin(address="10.0.0.5"))


def test_address_and_certificate_of_different_entries_do_not_add_up() -> None:
    """Of several entries for a title one has to fit as a whole."""
    callers = AllowList(
        (),
        [
            Caller(ae_title="CT1", addresses=["10.0.0.5"], certificate_sha256="cd" * 32),
            Caller(ae_title="CT1", addresses=["10.0.0.6"], certificate_sha256=CERTIFICATE),
        ],
    )
    assert callers.admits("CT1", Origin(address="10.0.0.6", certificate=CERTIFICATE))
    assert not callers.admits("CT1", Origin(address="10.0.0.5", certificate=CERTIFICATE))


@pytest.mark.parametrize(
    "entry",
    [
        {"ae_title": "CT1", "addresses": ["10.0.0.5/8"]},
        {"ae_title": "CT1", "addresses": ["host.example"]},
        {"ae_title": "CT1", "certificate_sha256": "ab" * 31},
        {"ae_title": "CT1", "certificates": []},
    ],
)
def test_an_entry_that_means_nothing_is_refused(entry: dict[str, object]) -> None:
    """A network with host bits, a name, half a fingerprint and an unknown key are errors at the start."""
    with pytest.raises(ValidationError):
        NodeSection(callers=[entry])


def test_a_title_is_free_or_bound() -> None:
    """A title in both lists would not be bound at all."""
    with pytest.raises(ValidationError, match="leave it in one"):
        NodeSection(allowed_callers=["CT1"], callers=[{"ae_title": "CT1", "addresses": ["10.0.0.5"]}])
