"""A decoder that hangs, crashes or eats memory costs one image; the next one is read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import Reason, Retryable
from worker.findings import Reading
from worker.guard import Decoders
from worker.settings import Settings, WorkerSection

DEADLINE_SECONDS = 120


def opened(**worker) -> Decoders:
    return Decoders(Settings(worker=WorkerSection(**({"decoders": 1} | worker))))


@pytest.fixture(scope="module")
def decoders():
    with opened() as pool:
        yield pool


@pytest.fixture(scope="module")
def small_decoders():
    with opened(decoder_memory_bytes=200_000_000) as pool:
        yield pool


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_film_through_a_child(decoders, phantom, spooled):
    """A spooled film comes back as a reading with its film, and again from the same child."""
    instance = spooled(phantom)
    first, pids = decoders.read(instance), decoders.pids
    second = decoders.read(instance)
    assert isinstance(first, Reading)
    assert np.array_equal(first.film.input_HW, second.film.input_HW)
    assert decoders.pids == pids


def test_threads_share_the_children(phantom, spooled):
    """Many threads read through two children, each with the answer to its own question."""
    instances = []
    for number in range(6):
        phantom.SOPInstanceUID = phantom.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
        instances.append(spooled(phantom))
    with opened(decoders=2) as pool, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(pool.read, instances))
    assert [one.sop_instance_uid for one in found] == [one.sop_instance_uid for one in instances]


def test_a_child_that_does_not_come_to_read(phantom, spooled):
    """A disk that stalls, or a machine: the child is killed, and no image is to blame."""
    instance = spooled(phantom)
    with opened(decoder_timeout=3) as pool:
        assert isinstance(pool.read(instance), Reading)
        (hung,) = pool.pids
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(Retryable, match="in time"):
            pool.read(instance)
        assert not is_alive(hung)
        assert isinstance(pool.read(instance), Reading)


def test_a_child_that_is_killed_once_costs_nothing(decoders, phantom, spooled):
    """A film whose child was killed by something else is read by the next child."""
    instance = spooled(phantom)
    decoders.read(instance)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGKILL)
    assert isinstance(decoders.read(instance), Reading)
    assert decoders.pids != (pid,)


def test_a_file_that_the_machine_does_not_give(decoders, phantom, spooled, tmp_path):
    """It is to be tried again, and the child that said so reads on."""
    instance, pids = spooled(phantom), decoders.pids
    with pytest.raises(Retryable, match="cannot be read"):
        decoders.read(replace(instance, path=tmp_path))
    assert isinstance(decoders.read(instance), Reading)
    assert decoders.pids == pids


def test_children_that_die_before_they_have_the_file(decoders, phantom, spooled):
    """Where none comes up (memory, a limit of processes), no image is to blame, and the pool goes on."""
    instance, done = spooled(phantom), threading.Event()

    def kill() -> None:
        while not done.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(decoders.pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(Retryable, match="before it had the file"):
            decoders.read(instance)
    finally:
        done.set()
        killer.join()
    assert isinstance(decoders.read(instance), Reading)


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"]
)
def test_a_bomb(small_decoders, phantom, spooled, wrap, syntax):
    """A small file that decodes to more than a child may take is quarantined for its memory."""
    bomb = wrap(np.zeros((8000, 7900), np.uint16), bits=16, syntax=syntax)
    healthy, bomb = spooled(phantom), spooled(bomb)
    assert small_decoders.read(bomb).reason is Reason.DECODER_MEMORY
    assert isinstance(small_decoders.read(healthy), Reading)


def test_children_end_with_the_pool(phantom, spooled):
    """After close no child is left."""
    pool = opened(decoders=2)
    pool.read(spooled(phantom))
    pids = pool.pids
    pool.close()
    assert not any(is_alive(pid) for pid in pids)


def test_children_ignore_the_signals_of_the_service(decoders, phantom, spooled):
    """SIGTERM and SIGINT to the whole service leave the film in hand alone."""
    instance = spooled(phantom)
    decoders.read(instance)
    (pid,) = decoders.pids
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert isinstance(decoders.read(instance), Reading)
    assert decoders.pids == (pid,)


def test_children_end_when_the_worker_is_killed(tmp_path):
    """A worker that is killed leaves no decoder behind."""

    program = (
        "import sys, time\n"
        "from worker.guard import Decoders\n"
        "from worker.settings import Settings\n"
        "print(*Decoders(Settings()).pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as worker:
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        worker.kill()
    assert pids
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


HOSTILE = """\
import pickle, socket, sys
from worker.frames import receive_frame, send_frame
end = socket.socket(fileno=int(sys.argv[1]))
receive_frame(end, longest=65536)
send_frame(end)
receive_frame(end, longest=65536)
send_frame(end)
class Bomb:
    def __reduce__(self):
        return open, ("{mark}", "w")
bomb = pickle.dumps(Bomb())
header = b'{{"kind": "rejected", "sop_instance_uid": "{sop}", "reason": "UNREADABLE", "sentence": "%b"}}\\n'
answer = {answer}
end.sendall(len(answer).to_bytes(4, "big") + answer)
end.recv(1)
"""


@pytest.fixture
def taken_over(monkeypatch, tmp_path, phantom, spooled):
    """`taken_over(answer)` reads a film in children that a film has taken over: they answer as they like."""
    instance = spooled(phantom)

    def read(answer: str, **worker):
        mark = tmp_path / "executed"
        program = HOSTILE.format(mark=mark, sop=instance.sop_instance_uid, answer=answer)
        monkeypatch.setattr("worker.guard._COMMAND", (sys.executable, "-c", program))
        with opened(**worker) as pool:
            found = pool.read(instance)
        assert not mark.exists()
        return found

    return read


def test_what_the_tests_of_hostile_children_send_is_understood(taken_over):
    """The children below speak well enough to be heard when they answer as a sound one would."""
    found = taken_over("header % b'It is broken.'")
    assert (found.reason, found.sentence) == (Reason.UNREADABLE, "It is broken.")


@pytest.mark.parametrize(
    "answer",
    [
        "bomb",
        "b''",
        "b'\\x00' * 100000",
        "header % b'It is broken.' + b'more'",
        "(header % b'It is broken.').replace(b'UNREADABLE', b'DOE^JOHN')",
        "(header % b'It is broken.').replace(b'2.25', b'9.99')",
        "header % (b'D' * 1000)",
        "header % b'It\\\\nis broken.'",
        "b'[' * 60000",
    ],
    ids=["pickle", "nothing", "zeros", "tail", "reason", "other image", "long", "line", "deep"],
)
def test_a_child_that_sends_garbage_has_crashed(taken_over, answer):
    """A child that was taken over executes nothing in the worker: its image is quarantined as crashed."""
    assert taken_over(answer).reason is Reason.DECODER_CRASHED


def test_a_film_that_crashes_every_child(monkeypatch, taken_over):
    """A film at which two children die, with its bytes in their hands, is quarantined."""
    monkeypatch.setattr(f"{__name__}.HOSTILE", HOSTILE.replace("class Bomb", "sys.exit(1)\nclass Bomb"))
    assert taken_over("b''").reason is Reason.DECODER_CRASHED


def test_a_child_that_hangs_at_a_film(monkeypatch, taken_over):
    """It is killed after the time that decoding has, and its image quarantined."""
    monkeypatch.setattr(f"{__name__}.HOSTILE", HOSTILE.replace("class Bomb", "end.recv(1)\nclass Bomb"))
    assert taken_over("b''", decoder_timeout=2).reason is Reason.DECODER_TIMEOUT


def test_a_child_that_announces_too_much_has_crashed(monkeypatch, taken_over):
    """An answer of four gigabytes is refused at its first four bytes."""
    monkeypatch.setattr(
        f"{__name__}.HOSTILE", HOSTILE.replace('len(answer).to_bytes(4, "big")', 'b"\\xff" * 4')
    )
    assert taken_over("b'x'").reason is Reason.DECODER_CRASHED


def test_a_child_that_sends_half_an_answer_is_hung(monkeypatch, taken_over):
    """The deadline is for the whole answer, not for its first byte."""
    monkeypatch.setattr(f"{__name__}.HOSTILE", HOSTILE.replace("len(answer)", "(len(answer) + 1)"))
    found = taken_over("header % b'It is broken.'", decoder_timeout=2)
    assert found.reason is Reason.DECODER_TIMEOUT
