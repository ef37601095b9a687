"""TLS under DICOM: what is negotiated (PS3.15 B.12, BCP 195), which files, and what went wrong in words."""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.refusals import Refused
from dicom_node.settings import TlsSection

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2). 1.3 has nothing else."""
_REVOKED = 23
"""X509_V_ERR_CERT_REVOKED."""
_NO_VALID_LIST = {3, 8, 11, 12, 33, 35, 36}
"""X509_V_ERR_: no CRL, its signature is wrong, not valid yet, ended, no issuer of it, who may not sign lists,
a critical extension that OpenSSL does not know."""
_UNACCEPTED = {
    Refused.REVOKED: "the certificate of the peer is revoked",
    Refused.NO_VALID_LIST: "whether the certificate of the peer is revoked cannot be known: {}",
    Refused.CERTIFICATE: "the certificate of the peer is not accepted: {}",
}
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """How a peer is reached over TLS: see the setting `destinations.tls`."""

    authorities: Path
    certificate: Path | None = None
    key: Path | None = None
    check_name: bool = True
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises `ConfigurationError`."""
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_name
        _trust(context, self.authorities)
        if self.certificate is not None:
            _show(context, self.certificate, self.key)
        return context

    def secure(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        """Shake hands over a connection. Raises `ConfigurationError`, `OSError`."""
        return self.context().wrap_socket(connection, server_hostname=self.server_name or host)


def server_context(settings: TlsSection) -> ssl.SSLContext:
    """The listener's side: a peer must show a certificate. Raises `ConfigurationError`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is taken up again would carry a certificate past an authority that was removed.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    # PDUs say where they end: a TCP connection that just ends is no attack, and our A-ABORT may still go out.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    _trust(context, settings.authorities)
    _show(context, settings.certificate, settings.key)
    if settings.crl is not None:
        from dicom_node.revocation import look_up  # noqa: PLC0415 (a tenth of the node's memory)

        look_up(context, settings.crl, settings.authorities)
    return context


def fingerprint(connection: ssl.SSLSocket) -> str:
    """SHA-256 of the peer's certificate, in hexadecimal."""
    return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()


def in_words(error: OSError) -> str:
    """What went wrong with a connection; nothing that the peer wrote."""
    match error:
        case ssl.SSLCertVerificationError():
            return _UNACCEPTED[_verdict(error)].format(error.verify_message)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return "the peer closed the connection"
        case ssl.SSLError(reason=str() as reason) if reason in _NO_TLS:
            return "the peer does not speak TLS"
        case ssl.SSLError(reason=str() as reason):
            return f"TLS failed: {reason.replace('_', ' ').lower()}"
        case TimeoutError():
            return "the peer was silent for too long"
        case _:
            return f"the connection failed: {type(error).__name__}"


def refused(error: OSError) -> Refused | None:
    """Why we refused the peer of a handshake that failed; None where it left by itself."""
    match error:
        case ssl.SSLCertVerificationError():
            return _verdict(error)
        case ssl.SSLError(reason="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            return Refused.CERTIFICATE
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ssl.SSLSyscallError():
            return None
        case ssl.SSLError() | TimeoutError():
            return Refused.HANDSHAKE
        case _:
            return None


def _verdict(error: ssl.SSLCertVerificationError) -> Refused:
    if error.verify_code == _REVOKED:
        return Refused.REVOKED
    return Refused.NO_VALID_LIST if error.verify_code in _NO_VALID_LIST else Refused.CERTIFICATE


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    return context


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    try:
        context.load_verify_locations(authorities)
    except OSError as error:
        raise ConfigurationError(
            f"{authorities} holds no certificate that can be used: {_why(error)}."
        ) from None


def _show(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def refuse() -> str:
        raise ConfigurationError(f"The key of {certificate} has a password: leave it without one, 0600.")

    try:
        # Without a function for the password OpenSSL would ask the terminal.
        context.load_cert_chain(certificate, key, password=refuse)
    except OSError as error:
        where = certificate if key is None else f"{certificate} with {key}"
        raise ConfigurationError(f"{where} cannot be used as a certificate: {_why(error)}.") from None


def _why(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or type(error).__name__).replace("_", " ").lower()
