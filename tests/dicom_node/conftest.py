"""A node that listens on a free port, and pynetdicom's SCPs as its peers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pynetdicom import AE, evt

from dicom_node.server import StorageServer
from dicom_node.settings import NodeSettings
from dicom_node.spool import Spool, SpooledInstance
from tests.dicom_node.build import Listening, eventually
from tests.dicom_node.certificates import Authority


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    """`listen(minimum_free_bytes=0, tls={}, **node_settings)` starts a node; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(
            *,
            minimum_free_bytes: int = 0,
            tls: Mapping[str, object] | None = None,
            lanes: Mapping[str, object] | None = None,
            **node: object,
        ) -> Listening:
            settings = NodeSettings(
                node={"port": 0, "network_timeout": 20.0, **node}, tls=tls or {}, lanes=lanes or {}
            )
            spool = Spool(tmp_path / "spool", minimum_free_bytes=minimum_free_bytes)
            spool.prepare()
            filed: list[SpooledInstance] = []
            server = StorageServer(settings, spool, filed.append)
            port = server.start()
            stack.callback(server.stop)
            return Listening(server=server, spool=spool, port=port, settings=settings, filed=filed)

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whoever signs the certificates of the hospital."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def node(listen: Callable[..., Listening]) -> Listening:
    """A node with default settings."""
    return listen()


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """`serve(ae, handlers)` runs a pynetdicom SCP and returns its port."""
    with contextlib.ExitStack() as stack:

        def start(ae: AE, handlers: list[evt.EventHandlerType]) -> int:
            server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
            stack.callback(server.shutdown)
            port: int = server.socket.getsockname()[1]
            return port

        yield start


@pytest.fixture
def broker(program: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """A Redis on a socket of its own; its path."""
    path = tmp_path / "redis.sock"
    command = [program("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        eventually(path.exists)
        yield str(path)
        process.terminate()
