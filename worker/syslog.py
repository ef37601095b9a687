"""Syslog over TLS (RFC 5424, RFC 5425) as DICOM's audit trail uses it (PS3.15 A.6), with a proof of receipt.

Syslog answers nothing: what lies in a socket when the server dies is lost without a word. So each batch
has a connection of its own, which ends with TLS's close_notify and waits for the server's end of it. The
server's kernel resets a connection whose bytes the server has not read; when it ends in peace and all our
bytes are acknowledged, the server has read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import sys
import termios
import time
from collections.abc import Iterable

from dicom_node.errors import ConfigurationError, Retryable
from worker.settings import AuditSection

_PRIORITY = 10 * 8 + 5  # security and authorization, normal but significant (PS3.15 A.6)
_MESSAGE_ID = "DICOM+RFC3881"
_ACKNOWLEDGED_SECONDS = 5.0


def frame(message: bytes, *, at: str, host: str) -> bytes:
    """One syslog message with the octets counted before it (RFC 5425, 4.3).

    Args:
        message: ASCII, so it stands without a byte order mark (MSG-ANY of RFC 5424).
        at: when it happened, ISO 8601 with at most six digits of a second.
        host: ours.
    """
    head = f"<{_PRIORITY}>1 {at} {host} covariance {os.getpid()} {_MESSAGE_ID} - "
    line = head.encode("ascii") + message
    return str(len(line)).encode("ascii") + b" " + line


class SyslogServer:
    """The server that the settings name."""

    def __init__(self, settings: AuditSection) -> None:
        """Raises ConfigurationError when a certificate or key cannot be used."""
        self._settings = settings
        self._context()

    def send(self, frames: Iterable[bytes]) -> None:
        """Send a batch; when this returns, the server has read all of it.

        Raises:
            Retryable: it may not have; to be sent again, all of it.
        """
        address = (self._settings.syslog_host, self._settings.syslog_port)
        context = self._context()
        try:
            with (
                socket.create_connection(address, self._settings.syslog_timeout) as plain,
                context.wrap_socket(plain, server_hostname=address[0]) as secure,
            ):
                secure.sendall(b"".join(frames))
                _await_end(secure)
        except OSError as error:
            # Every error of ssl is one; its text may quote a certificate, its name is enough.
            why = getattr(error, "reason", None) or error.strerror or type(error).__name__
            raise Retryable(f"The syslog server did not take the audit messages ({why}).") from None

    def _context(self) -> ssl.SSLContext:
        # For each connection: a certificate that was renewed is used without a restart.
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.syslog_authorities or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if settings.syslog_certificate:
                context.load_cert_chain(settings.syslog_certificate, settings.syslog_key or None)
        except OSError as error:
            why = getattr(error, "reason", None) or error.strerror
            raise ConfigurationError(f"A certificate or key of [audit] cannot be used ({why}).") from None
        return context


def _await_end(secure: ssl.SSLSocket) -> None:
    """Say that we are done, and wait until the server's end of the connection proves that it read all."""
    # rsyslog closes without a close_notify of its own.
    with contextlib.suppress(ssl.SSLEOFError):
        secure.unwrap()
    # A server that refused us may have closed before our bytes came: then they are not acknowledged.
    deadline = time.monotonic() + _ACKNOWLEDGED_SECONDS
    while _unacknowledged(secure):
        if error := secure.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.001)


def _unacknowledged(end: socket.socket) -> int:
    # SIOCOUTQ of tcp(7): bytes that the other kernel has not confirmed.
    return int.from_bytes(fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
