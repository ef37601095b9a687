"""The network: names, and C-ECHO to every destination, with what a rejection means."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url

from deploy.doctor.check import Check, fail, ok, warn
from deploy.doctor.rejections import explained
from dicom_node.store_scu import Peer, PeerUnavailable, echo
from worker.settings import Destination, Settings

_SLOW_SECONDS = 2.0
_BRIDGES = [
    ipaddress.ip_network(one)
    for one in ("172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "10.88.0.0/16", "10.244.0.0/16")
]
"""Where Docker, Podman and Kubernetes number containers when nobody tells them otherwise."""


def names(settings: Settings) -> Iterator[Check]:
    """Whether every host of the settings has an address."""
    hosts = dict.fromkeys(_hosts(settings))
    if not hosts:
        yield ok("dns", "No host of another machine is named.")
    for host in hosts:
        started = time.monotonic()
        try:
            found = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, None)})
        except OSError:
            yield fail("dns", f"{host} has no address.", "Correct the name, or the resolver of this machine.")
            continue
        seconds = time.monotonic() - started
        if seconds > _SLOW_SECONDS:
            yield warn(
                "dns",
                f"{host} is {found[0]}, known after {seconds:.0f} s.",
                "A resolver does not answer: every association waits for it.",
            )
        else:
            yield ok("dns", f"{host} is {', '.join(found[:3])}.")


def _hosts(settings: Settings) -> Iterator[str]:
    yield from (one.host for one in settings.destinations)
    if make_url(settings.database.url).get_backend_name() == "postgresql":
        host = make_url(settings.database.url).host
        if host and not host.startswith("/"):
            yield host
    queue = urlsplit(settings.queue.url)
    if queue.scheme in ("redis", "rediss") and queue.hostname:
        yield queue.hostname
    if settings.audit.syslog_host:
        yield settings.audit.syslog_host


def destinations(settings: Settings) -> Iterator[Check]:
    """C-ECHO to every destination with our AE title."""
    for one in settings.destinations:
        yield _destination(settings, one)


def _destination(settings: Settings, one: Destination) -> Check:
    name = f"destination {one.name}"
    ours = settings.node.ae_title
    peer = Peer(
        ae_title=one.ae_title,
        host=one.host,
        port=one.port,
        calling_ae=ours,
        timeout=min(settings.delivery.timeout, 10.0),
        tls=one.tls.as_client() if one.tls else None,
    )
    nat = _nat_hint(one.host, one.port)
    try:
        echo(peer)
    except PeerUnavailable as error:
        sentence, advice = explained(error, peer)
        return fail(name, sentence, f"{advice} {nat}".strip())
    sentence = f"{one.ae_title} at {one.host}:{one.port} answers C-ECHO of {ours}."
    if nat and one.verify == "commitment":
        return warn(name, sentence, nat)
    return ok(name, sentence)


def _nat_hint(host: str, port: int) -> str:
    ends = _ends(host, port)
    if ends is None or not in_container() or not is_translated(*ends):
        return ""
    return (
        f"We leave from {ends[0]}, the address of a container bridge: the peer sees that of the host instead "
        "(NAT). Register the host there, and publish node.port, so that commitment reports come back."
    )


def _ends(host: str, port: int) -> tuple[str, str] | None:
    """Our address on the way to a peer, and the peer's; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0]), str(probe.getpeername()[0])
    except OSError:
        return None


def is_translated(source: str, peer: str) -> bool:
    """Whether a container that leaves from `source` reaches the peer by NAT: not on the same bridge."""
    ours = next((net for net in _BRIDGES if ipaddress.ip_address(source) in net), None)
    return ours is not None and ipaddress.ip_address(peer) not in ours


def in_container() -> bool:
    """Whether this process runs in a container, as Docker, Podman and Kubernetes show it."""
    marks = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")
    return any(Path(one).exists() for one in marks)
