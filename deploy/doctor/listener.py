"""Our own node: whether its ports are free or ours, and whether it takes those who may send."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace

from deploy.doctor.check import Check, fail, ok, warn
from deploy.doctor.network import in_container
from dicom_node import uids
from dicom_node.negotiation import CALLED_AE_UNKNOWN, CALLING_AE_UNKNOWN
from dicom_node.requestor import PeerRejects
from dicom_node.settings import NodeSection
from dicom_node.store_scu import Peer, PeerUnavailable, echo
from worker.settings import Settings

_HERE = " in this container"


def ports(settings: Settings) -> Iterator[Check]:
    """Whether each port of ours is free, or we listen there."""
    node = settings.node
    if node.plain:
        yield _port(node, node.port, "node.port")
    if settings.tls.enabled:
        yield _port(node, settings.tls.port, "tls.port", secure=True)


def _port(node: NodeSection, port: int, setting: str, *, secure: bool = False) -> Check:
    where = f"{node.host}:{port} ({setting})"
    try:
        with socket.create_server((node.host, port)):
            return ok("ports", f"{where} is free: the node does not run{_HERE if in_container() else ''}.")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return ok("ports", f"{where} is listened on.") if secure else _taken(node, port, where, setting)
        if error.errno == errno.EACCES:
            advice = "Take a port from 1024, or give the process CAP_NET_BIND_SERVICE."
            return fail("ports", f"{where} is not ours to take.", advice)
        advice = f"Set node.host to an address of this machine, or {setting} to another port."
        return fail("ports", f"Nothing can listen on {where}: {error.strerror}.", advice)


def _taken(node: NodeSection, port: int, where: str, setting: str) -> Check:
    try:
        if echo(_ourselves(node, port, _a_caller(node))).implementation == uids.IMPLEMENTATION_CLASS:
            return ok("ports", f"{where} is our node.")
    except PeerRejects as error:
        # It speaks DICOM: what it says to those who may send comes next.
        return ok("ports", f"{where} is a DICOM listener: {_words(error)}.")
    except PeerUnavailable:
        pass
    advice = f"Find it with `ss -ltnp 'sport = :{port}'`, and stop it or change {setting}."
    return fail("ports", f"{where} is taken by something that is not our node.", advice)


def own_node(settings: Settings) -> Iterator[Check]:
    """C-ECHO to our own node as somebody who may send; whether it listens, where it does so over TLS only."""
    node = settings.node
    caller = _a_caller(node)
    us = _ourselves(node, node.port if node.plain else settings.tls.port, caller)
    if settings.heartbeat.host:
        us = replace(us, host=settings.heartbeat.host)
    if not _listens(us):
        hidden = in_container() and not settings.heartbeat.host
        yield warn(
            "own node",
            f"Nothing listens on {us.host}:{us.port}{_HERE if hidden else ''}.",
            "Name the node's container in heartbeat.host." if hidden else "Start it: `covariance up`.",
        )
        return
    if not node.plain:
        yield ok("own node", f"{us.host}:{us.port} is open, for TLS only: who may send is not asked here.")
        return
    try:
        echo(us)
    except PeerRejects as error:
        bound = caller not in node.allowed_callers and any(one.ae_title == caller for one in node.callers)
        if error.rejection == CALLING_AE_UNKNOWN and bound:
            yield ok("own node", f"It answers, and takes {caller} only from its own address or certificate.")
        elif error.rejection == CALLED_AE_UNKNOWN:
            advice = "Another node listens there, or it was started with other settings: restart it."
            yield fail("own node", f"It does not go by the name {node.ae_title}.", advice)
        else:
            yield fail(
                "own node", f"It rejects {caller}: {_words(error)}.", "Restart it with these settings."
            )
    except PeerUnavailable as error:
        yield fail("own node", f"{error}.", "Read its log, and restart it.")
    else:
        yield ok("own node", f"It answers C-ECHO of {caller}.")


def _a_caller(node: NodeSection) -> str:
    bound = [one.ae_title for one in node.callers]
    return next(iter((*node.allowed_callers, *bound)), node.ae_title)


def _ourselves(node: NodeSection, port: int, caller: str) -> Peer:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.host, node.host)  # noqa: S104 (to find it)
    return Peer(ae_title=node.ae_title, host=host, port=port, calling_ae=caller, timeout=5.0)


def _listens(us: Peer) -> bool:
    try:
        with socket.create_connection((us.host, us.port), timeout=5.0):
            return True
    except OSError:
        return False


def _words(error: PeerRejects) -> str:
    return str(error).rpartition("rejects the association: ")[2]
