"""Who may send: AE titles, bound to the address and the certificate that they come with."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from dicom_node.refusals import Refused
from dicom_node.settings import Caller


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a connection comes from. `certificate` is its SHA-256 in hexadecimal; None without TLS."""

    address: str
    certificate: str | None = None


class AllowList:
    """Nobody but those who are on it; anyone where it is empty."""

    def __init__(self, anywhere: Iterable[str], bound: Iterable[Caller]) -> None:
        self._anywhere = frozenset(title.strip() for title in anywhere)
        self._bound = tuple(bound)

    def __len__(self) -> int:
        return len(self._anywhere) + len(self._bound)

    def admits(self, ae_title: str, origin: Origin) -> bool:
        """Whether this title may send from there."""
        return self.objection(ae_title, origin) is None

    def objection(self, ae_title: str, origin: Origin) -> Refused | None:
        """Why this title may not send from there; None where it may."""
        if not len(self) or ae_title in self._anywhere:
            return None
        entries = [caller for caller in self._bound if caller.ae_title.strip() == ae_title]
        if not entries:
            return Refused.UNKNOWN_TITLE
        here = [caller for caller in entries if _calls_from(caller, origin)]
        if not here:
            return Refused.WRONG_ADDRESS
        if any(caller.certificate_sha256 in (None, origin.certificate) for caller in here):
            return None
        return Refused.WRONG_CERTIFICATE


def _calls_from(caller: Caller, origin: Origin) -> bool:
    if not caller.addresses:
        return True
    address = ipaddress.ip_address(origin.address)
    # A socket for both families names an IPv4 peer ::ffff:10.0.0.5.
    plain = getattr(address, "ipv4_mapped", None) or address
    return any(plain in network for network in caller.addresses)
