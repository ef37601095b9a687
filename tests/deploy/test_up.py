"""`covariance up` with everything real, from the start to an empty process table."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from deploy.up import usable_port
from dicom_node.store_scu import Peer, echo


@pytest.fixture
def up(start, tmp_path, eventually):
    """`up()` starts the stack in an empty folder and waits until it serves."""

    def run():
        port = usable_port("127.0.0.1", 0)
        process = start(sys.executable, "-P", "-m", "deploy", "up", COVARIANCE_NODE__PORT=str(port))
        output = tmp_path / "output"

        def is_up() -> bool:
            assert process.poll() is None, output.read_text()
            return "CoVariance is up" in output.read_text()

        eventually(is_up, what="the stack serves", seconds=240)
        return process, port

    return run


def test_it_serves_and_leaves_nothing_behind(up, tmp_path, family, alive):
    """The stack answers C-ECHO; after SIGTERM no process, port or socket of it is left."""
    process, port = up()
    echo(Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="TEST", timeout=20.0))
    started = family(process.pid)
    assert len(started) >= 4
    process.terminate()
    assert process.wait(90) == 0
    assert [pid for pid in started if alive(pid)] == []
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    assert (tmp_path / "covariance-data" / "spool").is_dir()


def test_whatever_it_makes_is_private(up, tmp_path, family, eventually):
    """No other account may open ledger, WAL, engine cache, broker folder or spool, and no core is kept."""
    process, _ = up()
    data = tmp_path / "covariance-data"
    eventually(lambda: list((data / "engine-cache").glob("*")), what="the engine has filled its cache")
    # OpenVINO gives its compiled models a mode of their own; their directory is closed.
    made = [path for path in (data, *data.rglob("*")) if path.suffix != ".blob"]
    names = {path.name for path in made}
    assert {"ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm", "valkey.sock", "spool"} <= names
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.lstat().st_mode) for path in made}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    for pid in (process.pid, *family(process.pid)):
        status = Path(f"/proc/{pid}/status").read_text()
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Umask:\t0077" in status
        assert re.search(r"Max core file size +0 +0 ", limits)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_killing_it_leaves_nothing_behind(up, eventually, family, alive):
    """A supervisor that is killed takes node, worker, decoders, deliverer and broker along."""
    process, _ = up()
    started = family(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    eventually(lambda: not any(alive(pid) for pid in started), what="every process has ended")


def test_a_second_stack_over_one_folder_is_refused(covariance, tmp_path):
    """While a broker works on the folder, another one is refused with exit code 2 and a sentence."""
    import fcntl

    folder = tmp_path / "covariance-data" / "valkey"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = covariance("up", COVARIANCE_NODE__PORT=str(usable_port("127.0.0.1", 0)))
    assert done.returncode == 2
    assert "Another `covariance up` works on" in done.stderr


def test_a_taken_port_is_said_at_once(covariance):
    """A port that another program holds is exit code 2, before anything is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = covariance("up", COVARIANCE_NODE__PORT=str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert os.linesep not in done.stderr.strip()
