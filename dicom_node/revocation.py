"""Lists of revoked certificates: read and judged before OpenSSL looks peers up in them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger

log = get_logger("revocation")

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_OTHER = re.compile(rb"-----BEGIN (?!X509 CRL-----)")


@dataclass(frozen=True, kw_only=True)
class RevocationList:
    """One list. `until` is None where it never ends."""

    issuer: str
    since: datetime
    until: datetime | None
    revoked: int

    def fault(self, now: datetime) -> str | None:
        """Why it is no good at that time, in words; None where it is."""
        if now < self.since:
            return f"the revocation list of {self.issuer} is not valid before {_minute(self.since)}"
        if self.until is not None and now > self.until:
            return f"the revocation list of {self.issuer} ended at {_minute(self.until)}"
        return None

    def __str__(self) -> str:
        end = "without an end" if self.until is None else f"until {_minute(self.until)}"
        return f"list of {self.issuer} good {end} ({self.revoked} revoked)"


@dataclass(frozen=True, kw_only=True)
class RevocationLists:
    """All lists, and the names of the authorities that have none."""

    lists: Sequence[RevocationList]
    without: Sequence[str]


def read_lists(file: Path, authorities: Path) -> RevocationLists:
    """Read the lists, and see that each is signed by one of the authorities.

    Raises:
        ConfigurationError: a file cannot be read, or holds something else; a list is not of an authority.
    """
    issuers = _certificates(authorities)
    found, having = [], set[int]()
    for crl in _lists(file):
        signers = [number for number, issuer in enumerate(issuers) if _is_of(crl, issuer)]
        name = crl.issuer.rfc4514_string()
        if not signers:
            raise ConfigurationError(
                f"{file} holds a list of {name}, and {authorities} no certificate of that authority whose "
                "signature it bears."
            )
        having.update(signers)
        found.append(
            RevocationList(
                issuer=name, since=crl.last_update_utc, until=crl.next_update_utc, revoked=len(crl)
            )
        )
    without = [one.subject.rfc4514_string() for number, one in enumerate(issuers) if number not in having]
    return RevocationLists(lists=found, without=without)


def look_up(context: ssl.SSLContext, file: Path, authorities: Path) -> None:
    """Have every peer of this context looked up. A list that has ended is logged: its peers are refused.

    Raises:
        ConfigurationError: the lists cannot be used.
    """
    read = read_lists(file, authorities)
    certificates = context.cert_store_stats()["x509"]
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be used as a revocation list: {error.strerror}.") from None
    if context.cert_store_stats()["x509"] != certificates:
        # OpenSSL trusts every certificate that it finds there: the file was exchanged meanwhile.
        raise ConfigurationError(f"{file} holds a certificate: only revocation lists belong there.")
    # A whole chain can be looked up only where every authority has a list.
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF if read.without else ssl.VERIFY_CRL_CHECK_CHAIN
    now = datetime.now(UTC)
    for fault in filter(None, (one.fault(now) for one in read.lists)):
        log.error("revocation_list_not_valid", why=f"{fault}: who was signed by it is refused")


def _lists(file: Path) -> list[x509.CertificateRevocationList]:
    content = _read(file)
    if _OTHER.search(content):
        raise ConfigurationError(f"{file} holds something else than revocation lists.")
    try:
        found = [x509.load_pem_x509_crl(one) for one in _LIST.findall(content)]
    except ValueError:
        raise ConfigurationError(f"{file} holds a revocation list that cannot be read.") from None
    if not found:
        raise ConfigurationError(
            f"{file} holds no revocation list in PEM: `openssl crl -inform DER -in FILE` writes it from DER."
        )
    return found


def _certificates(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(file))
    except ValueError:
        raise ConfigurationError(f"{file} holds no certificate that can be used.") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None


def _is_of(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    if crl.issuer != issuer.subject:
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type] # another key: TypeError
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
