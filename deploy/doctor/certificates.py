"""Certificates: who signed them, and when they and the revocation lists end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from deploy.doctor.check import Check, fail, ok, warn
from dicom_node.errors import ConfigurationError
from dicom_node.revocation import read_lists
from dicom_node.settings import TlsSection
from dicom_node.tls import server_context
from worker.settings import Settings

_SOON = timedelta(days=30)
_LIST_SOON = timedelta(days=7)


def certificates(settings: Settings) -> Iterator[Check]:
    """The files of the listener, and those of every destination."""
    tls = settings.tls
    secure = [one for one in settings.destinations if one.tls is not None]
    if not tls.enabled and not secure:
        yield ok("tls", "TLS is not used (tls.enabled, destinations.tls).")
    if tls.enabled:
        server_context(tls)  # raises in words what cannot be used
        yield from _ends("tls", tls.certificate)
        yield from _ends("tls", tls.authorities)
        yield from _chain("tls", tls.certificate, tls.authorities)
        yield from _lists(tls)
    for one in secure:
        client = one.tls.as_client() if one.tls else None
        if client is None:
            continue
        name = f"tls of {one.name}"
        client.context()
        yield from _ends(name, client.authorities)
        if client.certificate is not None:
            yield from _ends(name, client.certificate)


def _ends(name: str, file: Path) -> Iterator[Check]:
    now = datetime.now(UTC)
    for one in _certificates(file):
        subject, until = (
            one.subject.rfc4514_string() or f"serial {one.serial_number:x}",
            one.not_valid_after_utc,
        )
        if until <= now:
            yield fail(
                name, f"{subject} in {file} ended on {until:%Y-%m-%d}.", "Put a new certificate there."
            )
        elif one.not_valid_before_utc > now:
            since = one.not_valid_before_utc
            yield fail(name, f"{subject} in {file} begins on {since:%Y-%m-%d}.", "Compare the clocks.")
        elif until - now < _SOON:
            days = (until - now).days
            yield warn(name, f"{subject} in {file} ends in {days} days.", "Renew it; no restart is needed.")
        else:
            yield ok(name, f"{subject} in {file} is good until {until:%Y-%m-%d}.")


def _chain(name: str, file: Path, authorities: Path) -> Iterator[Check]:
    leaf, *between = _certificates(file)
    known, seen = [*between, *_certificates(authorities)], leaf
    for _ in range(len(known) + 1):
        issuer = next((one for one in known if _is_signed_by(seen, one)), None)
        if issuer is None:
            missing = seen.issuer.rfc4514_string()
            yield warn(
                name,
                f"{file} leads to {missing}, of which {authorities} knows nothing.",
                "Peers with our authorities refuse us: put what is between behind the certificate.",
            )
            return
        if issuer.subject == issuer.issuer:
            yield ok(name, f"{file} leads to {issuer.subject.rfc4514_string()}.")
            return
        seen = issuer


def _is_signed_by(one: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _lists(tls: TlsSection) -> Iterator[Check]:
    if tls.crl is None:
        yield ok("tls", "No revocation lists are used (tls.crl).")
        return
    read, now = read_lists(tls.crl, tls.authorities), datetime.now(UTC)
    for one in read.lists:
        advice = f"Put a new list into {tls.crl}: `openssl ca -gencrl`, see runbooks/access.md."
        if fault := one.fault(now):
            yield fail("tls", f"All that it signed are refused: {fault}.", advice)
        elif one.until is not None and one.until - now < _LIST_SOON:
            yield warn("tls", f"The {one} ends soon.", advice)
        else:
            yield ok("tls", f"The {one}.")
    for issuer in read.without:
        yield warn(
            "tls",
            f"There is no list of {issuer}: whom it signed is refused.",
            f"Add its list to {tls.crl}.",
        )


def _certificates(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigurationError(f"{file} holds no certificate that can be used.") from None
