from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from dicom_node import uids
from dicom_node.dispatch import QUEUES, Dispatcher, celery_app
from dicom_node.lanes import Lane
from dicom_node.main import Node
from dicom_node.settings import NodeSettings
from dicom_node.store_scu import Peer, StoreAssociation
from tests.dicom_node.build import eventually, film

RUN = """
from dicom_node.logs import configure_logs
from dicom_node.main import run_node
from dicom_node.settings import NodeSettings
configure_logs(style="json")
run_node(NodeSettings(), ready=lambda port: print(port, flush=True))
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """`run(*before)` starts a node process, under the command `before`; returns it and its port."""
    processes: list[subprocess.Popen[str]] = []

    def start(*before: str) -> tuple[subprocess.Popen[str], int]:
        environment = {
            **os.environ,
            "COVARIANCE_NODE__PORT": "0",
            "COVARIANCE_SPOOL__PATH": str(tmp_path / "spool"),
            "COVARIANCE_SPOOL__MINIMUM_FREE_BYTES": "0",
            "COVARIANCE_QUEUE__URL": "redis://127.0.0.1:1/0",
            "COVARIANCE_ASSEMBLY__QUIET_SECONDS": "0.05",
        }
        process = subprocess.Popen(
            [*before, sys.executable, "-c", RUN],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def store(port: int, content: Dataset | None = None) -> int:
    ae = AE("MODALITY")
    ae.add_requested_context(uids.COMPUTED_RADIOGRAPHY, uids.EXPLICIT_VR_LITTLE_ENDIAN)
    association = ae.associate("127.0.0.1", port, ae_title="COVARIANCE")
    try:
        return association.send_c_store(content or film()).Status
    finally:
        association.release()


def test_accepts_while_the_broker_is_away_and_ends_at_sigterm(
    run: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    """With nobody behind it the node stores, says that nobody heard, and stops cleanly."""
    process, port = run()
    assert [store(port), store(port)] == [0, 0]
    heard = [process.stderr.readline()]
    while "study_released" not in heard[-1]:
        heard.append(process.stderr.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert json.loads(heard[-1])["rung"] is False


def test_a_kill_loses_nothing_that_was_answered(
    run: Callable[..., tuple[subprocess.Popen[str], int]], tmp_path: Path
) -> None:
    """After SIGKILL the objects are there, and a new process starts on the same spool."""
    process, port = run()
    store(port)
    process.kill()
    process.wait()
    _, port = run()
    store(port)
    assert len(list(tmp_path.glob("spool/studies/*/*.dcm"))) == 2


def test_everything_is_on_the_disk_before_the_answer(
    run: Callable[..., tuple[subprocess.Popen[str], int]], tmp_path: Path, program: Callable[[str], str]
) -> None:
    """The system calls of a C-STORE: write, fdatasync, rename, fsync of the directory, response."""
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,fdatasync,rename,fsync,sendto"
    process, port = run(program("strace"), "-D", "-f", "-y", "-s", "0", "-e", calls, "-o", str(trace))
    store(port)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    # strace fills a short process id up with blanks.
    eventually(lambda: f"{process.pid:<5} +++ exited" in trace.read_text())
    lines = trace.read_text().splitlines()
    renamed = next(n for n, line in enumerate(lines) if " rename(" in line and ".part" in line)
    thread = lines[renamed].split()[0]
    own = [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == thread]
    names = [
        line.split("(")[0]
        for line in own
        if ".part" in line or "spool/studies" in line or line.startswith("sendto")
    ]
    begin = names.index("pwrite64")
    assert "write" in names[:begin]
    # The directory of the study is new, so its parent is synchronised before the rename.
    assert names[begin : begin + 6] == ["pwrite64", "fdatasync", "fsync", "rename", "fsync", "sendto"]


def test_a_node_without_descriptors_recovers(
    run: Callable[..., tuple[subprocess.Popen[str], int]], program: Callable[[str], str]
) -> None:
    """When no file can be opened any more connections wait; as soon as some are closed, a film is stored."""
    process, port = run(program("prlimit"), "--nofile=48:48")
    peers = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(100)]
    while "connection_not_accepted" not in process.stderr.readline():
        pass
    for peer in peers:
        peer.close()
    # A thread that reads on, so that the log does not fill its pipe.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    assert store(port) == 0


def test_rings_once_for_a_study(tmp_path: Path, broker: str) -> None:
    """Two objects of a study are one ring, when the quiet period is over."""
    settings = NodeSettings(
        node={"port": 0},
        spool={"path": str(tmp_path / "spool"), "minimum_free_bytes": 0},
        assembly={"quiet_seconds": 0.5},
        queue={"url": f"redis+socket://{broker}"},
    )
    node = Node(settings)
    ready: queue.Queue[int] = queue.Queue()
    thread = threading.Thread(target=node.run, args=(ready.put,))
    thread.start()
    try:
        port = ready.get(timeout=30)
        for number in range(2):
            assert store(port, film(StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{number}")) == 0
        eventually(Dispatcher(settings).depth)
        node.stop()
        thread.join(30)
        with celery_app(settings).connection_for_read() as connection:
            rung = connection.SimpleQueue(QUEUES[Lane.ROUTINE])
            assert rung.get(timeout=10).payload[0] == ["1.2.3"]
            assert Dispatcher(settings).depth() == 0
    finally:
        node.stop()
        thread.join(30)


@pytest.mark.parametrize("together", [True, False])
def test_a_stop_waits_for_one_ring_and_not_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """A thousand studies, complete together or one after the other, do not stand before a word to stop."""
    settings = NodeSettings(
        node={"port": 0},
        spool={"path": str(tmp_path / "spool"), "minimum_free_bytes": 0},
        assembly={"quiet_seconds": 1.0 if together else 0.001},
    )
    node = Node(settings)
    rung: list[str] = []

    def ring(study: str, lane: Lane) -> bool:
        rung.append(study)
        node.stop()
        return False

    monkeypatch.setattr(node._dispatcher, "ring", ring)
    monkeypatch.setattr(node._dispatcher, "tell", lambda _: pytest.fail("it went on"))
    for number in range(1000):
        study = f"1.2.{number}"
        if together:
            node._assembler.arrived(study, time.monotonic() - 60)
        else:
            node._filed(SimpleNamespace(study_instance_uid=study, lane=Lane.ROUTINE))
    if not together:
        time.sleep(0.002)
    node.run(lambda _: None if together else node._reported())
    assert 1 <= len(rung) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_buffers_of_many_associations_are_given_back(
    run: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    """Sixty associations at once leave the node as small as one did."""
    process, port = run()
    node = psutil.Process(process.pid)
    assert store(port) == 0
    before = node.memory_info().rss
    peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="MODALITY", timeout=60)
    with contextlib.ExitStack() as open_at_once:
        for _ in range(60):
            open_at_once.enter_context(StoreAssociation(peer, [], commitment=False))
        assert node.num_threads() > 60
    eventually(lambda: node.num_threads() < 10)
    assert node.memory_info().rss - before < 30_000_000
