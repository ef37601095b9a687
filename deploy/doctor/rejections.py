"""What a peer's no means, in words, and what to do about it."""

from __future__ import annotations

import errno
import socket
import ssl

from dicom_node.errors import ConfigurationError
from dicom_node.negotiation import (
    APPLICATION_CONTEXT_UNKNOWN,
    CALLED_AE_UNKNOWN,
    CALLING_AE_UNKNOWN,
    LIMIT_EXCEEDED,
)
from dicom_node.requestor import PeerRejects
from dicom_node.store_scu import Peer, PeerUnavailable

_NO_REASON = (1, 1, 1)
_CONGESTED = (2, 3, 1)


def explained(error: PeerUnavailable, peer: Peer) -> tuple[str, str]:
    """One sentence on what happened, and what to do."""
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    if isinstance(error, PeerRejects):
        return _rejected(error, peer, where)
    return _unreachable(error, peer, where)


def _unreachable(error: PeerUnavailable, peer: Peer, where: str) -> tuple[str, str]:
    cause = error.__cause__
    match cause:
        case ConnectionRefusedError():
            return (
                f"{where} refuses the connection: nothing listens there.",
                "Compare host and port with the PACS; a firewall that rejects looks the same.",
            )
        case socket.gaierror():
            return f"{where} has no address.", "Correct `host`, or the resolver of this machine."
        case TimeoutError():
            return (
                f"{where} does not answer within {peer.timeout:g} s (time-out).",
                "A firewall that drops packets, a wrong address, or a machine that is off.",
            )
        case OSError(errno=errno.ENETUNREACH | errno.EHOSTUNREACH):
            return f"There is no way to {where}.", "Look at routes, and at the networks of the container."
        case ssl.SSLError() | ConfigurationError():
            return f"{error}.", _tls_advice(cause)
        case _:
            return (
                f"{error}.",
                "A peer that closes at once speaks TLS or HTTP there, or does not know our address.",
            )


def _rejected(error: PeerRejects, peer: Peer, where: str) -> tuple[str, str]:
    match error.rejection:
        case found if found == CALLING_AE_UNKNOWN:
            return (
                f"{where} does not recognise our calling AE title {peer.calling_ae} (1,1,3).",
                f"Register {peer.calling_ae} there with this machine's address and our port.",
            )
        case found if found == CALLED_AE_UNKNOWN:
            return (
                f"{peer.host}:{peer.port} does not go by the called AE title {peer.ae_title} (1,1,7).",
                "Correct ae_title of the destination (case counts); some PACS say this as well where "
                f"they do not know {peer.calling_ae}.",
            )
        case found if found in (LIMIT_EXCEEDED, _CONGESTED):
            return (
                f"{where} has no association free for us.",
                "It passes, or the PACS allows too few; results wait meanwhile.",
            )
        case found if found == APPLICATION_CONTEXT_UNKNOWN:
            return f"{where} does not know the DICOM application context.", "It is no DICOM listener."
        case found if found == _NO_REASON:
            return (
                f"{where} rejects the association and gives no reason (1,1,1).",
                f"Register {peer.calling_ae} with this machine's address there; some PACS say no more.",
            )
        case _:
            return f"{error}.", "The log of the PACS says more."


def _tls_advice(cause: object) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            "Renew the certificate of the peer, or put its authority into tls.authorities of the destination."
        )
    if isinstance(cause, ConfigurationError):
        return "Correct the files of destinations.tls."
    return "Compare the port: plain and TLS differ; then whether the peer trusts our certificate."
