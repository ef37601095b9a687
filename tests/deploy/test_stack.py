"""The supervisor, with small programs in the place of ours."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import textwrap

import pytest

from deploy.stack import Program, _Child

SUPERVISOR = """
    import sys
    from deploy.stack import Program, Stack, die_with_parent
    from dicom_node.errors import ConfigurationError

    def program(name, code, **more):
        prelude = "import os, signal, sys, time; from deploy.stack import *; die_with_parent();"
        command = (sys.executable, "-c", prelude + code)
        return Program(name=name, command=command, environment=os.environ, **more)

    import os
    programs = [program(*one.split("=", 1), stop_seconds=0.5) for one in sys.argv[1:]]
    try:
        # One call: lines of two threads do not mix.
        say = lambda *words: os.write(1, (" ".join(words) + "\\n").encode())
        Stack(programs, report=say, longest_pause=0.2).run(lambda: say("all ready"))
    except ConfigurationError as error:
        sys.exit(str(error))
"""
SERVE = "announce_ready(int(sys.argv[-1])); print(os.getpid(), flush=True); time.sleep(600)"
IGNORE_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN);"


@pytest.fixture
def supervise(start, tmp_path, eventually):
    """`supervise(*NAME=CODE)` starts a supervisor over such programs; `said()` is its output, by line."""

    def run(*programs: str):
        process = start(sys.executable, "-c", textwrap.dedent(SUPERVISOR), *programs)
        return process, lambda: (tmp_path / "output").read_text().splitlines()

    return run


def pid_of(name: str, lines: list[str]) -> int | None:
    """The last process id that a program has printed."""
    return next((int(line.split()[1]) for line in reversed(lines) if line.startswith(f"{name} ")), None)


def test_ready_is_said_once_when_all_serve(supervise, eventually):
    """The stack is ready when every program has said so, and not before."""
    _, said = supervise(f"one={SERVE}", f"two=time.sleep(0.5); {SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    assert pid_of("two", said()), "the slow program had not started"
    assert said().count("all ready") == 1


def test_a_supervisor_of_many_descriptors_serves(start, tmp_path, eventually):
    """With more than 1024 files open it still hears that a program serves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the hard limit of open files is under 2048")
    full = f"""
    import os, resource
    resource.setrlimit(resource.RLIMIT_NOFILE, ({max(soft, 2048)}, {hard}))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    """
    start(sys.executable, "-c", textwrap.dedent(full + SUPERVISOR), f"one={SERVE}")
    eventually(lambda: "all ready" in (tmp_path / "output").read_text(), what="the stack is ready")


def test_a_program_that_dies_is_started_again(supervise, eventually):
    """A program killed from outside runs again, as another process."""
    _, said = supervise(f"one={SERVE}")
    first = eventually(lambda: pid_of("one", said()), what="the program runs")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pid_of("one", said()) != first, what="the program runs again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all(supervise, eventually, family, alive, number):
    """After SIGTERM, SIGINT or SIGHUP nothing runs any more, and the exit is clean."""
    process, said = supervise(f"one={SERVE}", f"two={SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    started = family(process.pid)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert [pid for pid in started if alive(pid)] == []


def test_programs_are_stopped_from_the_last_to_the_first(supervise, eventually):
    """What takes work in is stopped before what works it off."""
    told = "signal.signal(signal.SIGTERM, lambda *_: (print('ends', flush=True), os._exit(0)));"
    process, said = supervise(f"first={told}{SERVE}", f"last={told}{SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    process.terminate()
    process.wait(20)
    assert [line for line in said() if line.endswith("ends")] == ["last ends", "first ends"]


def test_a_program_that_does_not_stop_is_killed(supervise, eventually, family, alive):
    """Patience has an end: a program that ignores SIGTERM is killed, and its children with it."""
    spawn = "import subprocess; subprocess.Popen(['sleep', '600']);"
    process, said = supervise(f"one={IGNORE_TERM}{spawn}{SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    started = family(process.pid)
    assert len(started) == 2
    process.terminate()
    assert process.wait(20) == 0
    assert [pid for pid in started if alive(pid)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_programs_end_with_a_killed_supervisor(supervise, eventually, family, alive):
    """A supervisor that is killed takes its programs along."""
    process, said = supervise(f"one={SERVE}", f"two={SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    started = family(process.pid)
    process.kill()
    eventually(lambda: not any(alive(pid) for pid in started), what="every program has ended")


def test_settings_that_cannot_work_end_the_stack(supervise, alive, eventually, family):
    """A program that ends with exit code 2 before it ever served is named, and the stack stops."""
    process, said = supervise(f"good={SERVE}", "bad=time.sleep(0.5); sys.exit(2)")
    good = eventually(lambda: pid_of("good", said()), what="the other program runs")
    assert process.wait(20) == 1
    assert "bad cannot work with these settings" in said()[-1]
    assert not alive(good)


def test_settings_that_have_worked_do_not_end_the_stack(supervise, alive, eventually):
    """A program that served and then ends with exit code 2 is started again, and the others run on."""
    stops_badly = "signal.signal(signal.SIGTERM, lambda *_: os._exit(2));"
    process, said = supervise(f"good={SERVE}", f"bad={stops_badly}{SERVE}")
    eventually(lambda: "all ready" in said(), what="the stack is ready")
    good, bad = pid_of("good", said()), eventually(lambda: pid_of("bad", said()), what="the program runs")
    os.kill(bad, signal.SIGTERM)
    eventually(lambda: pid_of("bad", said()) != bad, what="the program runs again")
    assert process.poll() is None
    assert alive(good)


def test_a_drained_child_stays_down(tmp_path):
    """A child that ends with the exit code of a drained one is not started again."""
    import threading
    import time

    from deploy.stack import DRAINED_EXIT as EXIT
    from deploy.stack import Program, Stack
    from worker.drain import DRAINED_EXIT

    assert EXIT == DRAINED_EXIT
    starts = tmp_path / "starts"
    script = f"echo x >> {starts}; exit {DRAINED_EXIT}"
    program = Program(name="worker", command=("sh", "-c", script), environment={}, is_ready=lambda: True)
    stack = Stack([program], report=lambda *_: None)

    def stop_later():
        deadline = time.monotonic() + 20
        while not starts.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1.5)  # longer than the first pause before a start
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=stop_later).start()
    stack.run(lambda: None)
    assert starts.read_text() == "x\n"


STORM = """
    import os, signal, threading, time
    from deploy.stack import stopped_by

    def send():
        while True:
            os.kill(os.getpid(), signal.SIGTERM)

    with stopped_by(signal.SIGTERM) as stop:
        with stop._cond:  # as where a signal interrupts a wait of the main thread
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(20)
        threading.Thread(target=send, daemon=True).start()
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            stop.clear()
            stop.wait(0.01)
        print("ended", flush=True)
        os._exit(0)  # within: outside of it a signal would end the process
"""


def test_no_signal_can_hang_what_waits_for_one(start, tmp_path):
    """A signal that interrupts a wait, or the handling of another one, is only a signal more."""
    process = start(sys.executable, "-c", textwrap.dedent(STORM))
    assert process.wait(60) == 0
    assert (tmp_path / "output").read_text() == "ended\n"


def test_a_line_that_cannot_be_passed_on_costs_no_other(eventually):
    """Where the supervisor's own log is full for a moment, its children write on and live on."""
    passed: list[str] = []

    def report(name: str, line: str) -> None:
        passed.append(line)
        if line == "0":
            raise OSError(errno.ENOSPC, "full")

    program = Program(
        name="one",
        command=[sys.executable, "-c", "for i in range(3): print(i, flush=True)"],
        environment=os.environ,
        is_ready=lambda: True,
    )
    child = _Child(program, report, 1.0)
    child.look()
    eventually(lambda: passed == ["0", "1", "2"], what="the lines behind it have come")
    child.end()


def test_a_program_that_cannot_be_started_again_just_now_is_tried_again(monkeypatch, eventually):
    """A machine without memory or processes for one child keeps the others; a first start is not excused."""

    def refuse(*arguments, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    program = Program(
        name="one", command=["sleep", "600"], environment=os.environ, is_ready=lambda: True, stop_seconds=5
    )
    child = _Child(program, lambda name, line: None, 0.01)
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.Popen", refuse)
        with pytest.raises(OSError, match="memory"):
            child.look()
    eventually(lambda: child.look() or child.ready, what="it serves")
    child.end()
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.Popen", refuse)
        child.look()
        assert not child.ready
    eventually(lambda: child.look() or child.ready, what="it serves again")
    child.end()
