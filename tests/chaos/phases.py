"""What is done to the system, phase by phase; each ends at rest, with the oracle's word."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection

from dicom_node.failpoints import POINTS
from tests.chaos.run import SAY_SECONDS, Run
from tests.chaos.stack import LEASE, OURS

WEIGHTS = {"node": 45, "worker": 30, "decoder": 40, "deliver": 40, "broker": 30, "database": 15}
"""How often each is killed, of 200 times."""
WHERE = {
    "node": tuple(p for p in POINTS if p.startswith(("spool.", "receive.", "reports.", "durable."))),
    "worker": tuple(
        p for p in POINTS if p.startswith(("pipeline.", "scorer.", "durable.")) or p == "outbox.after_keep"
    ),
    "deliver": tuple(p for p in POINTS if p.startswith(("deliver.", "office.")) or p.endswith("_drop")),
}
"""Which process comes by which points."""
_POINT_SECONDS = 600.0
_ALONE_SECONDS = 300.0


def quiet(run: Run, seconds: float) -> None:
    """Nothing breaks: the time that the way itself takes, to compare with."""
    with run.load():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(2.0)
            run.lose("nothing", alone=True)
    run.settle("quiet")


def failpoints(run: Run, action: str, points: dict[str, tuple[str, ...]] | None = None) -> None:
    """Every point acts once, in the order in which the films come by."""
    marks = run.stack.folder / "marks"
    marks.mkdir(exist_ok=True)
    wanted = {
        f"{process} {point}": marks / f"{process}-{point}-{action.partition(':')[0]}"
        for process, names in (points or WHERE).items()
        for point in names
    }
    armed: dict[str, list[str]] = {}
    for name, mark in wanted.items():
        process, point = name.split()
        armed.setdefault(process, []).append(f"{point}={action}~{mark}")
    run.stack.arm({process: ";".join(traps) for process, traps in armed.items()})
    phase, seen = f"failpoints, {action}", set[str]()

    def all_seen() -> bool:
        for name in [name for name, mark in wanted.items() if name not in seen and mark.exists()]:
            seen.add(name)
            run.lose(f"failpoint {action.partition(':')[0]}")
            run.points.setdefault(name, set()).add(action)
        return len(seen) == len(wanted)

    with run.load():
        if not run.wait(all_seen, _POINT_SECONDS, phase):
            missed = ", ".join(sorted(wanted.keys() - seen))
            run.violations.append(f"{phase}: never reached: {missed}.")
    run.settle(phase)
    for name in OURS:
        run.stack.programs[name].environment = {}


def alone(run: Run, times: int) -> None:
    """One SIGKILL at a time, and the next when the system has recovered: what a loss costs."""
    with run.load():
        for kind in [kind for _ in range(times) for kind in WEIGHTS]:
            run.flow()
            if _kill(run, kind):
                loss = run.lose(f"SIGKILL {kind}", alone=True)
                run.wait(lambda loss=loss: run.recovered(loss), _ALONE_SECONDS, f"after SIGKILL {kind}")
    run.settle("SIGKILLs, one at a time")


def kills(run: Run, number: int, mean_seconds: float, *, only: Collection[str] = WEIGHTS) -> None:
    """So many SIGKILLs at random, each to a process of one of these kinds."""
    done, say_at = 0, time.monotonic() + SAY_SECONDS
    killed_at = dict.fromkeys(only, -1)
    with run.load():
        while done < number:
            time.sleep(min(run.dice.expovariate(1 / mean_seconds), 3 * mean_seconds))
            if time.monotonic() > say_at:
                run.say(f"{done} of {number} SIGKILLs; {run.counts()}")
                say_at = time.monotonic() + SAY_SECONDS
            # A process that dies before anything went through it again is no load, only a pause.
            ripe = [kind for kind in only if len(run.watch.done) > killed_at[kind]]
            kind = run.dice.choices([*ripe, ""], [*(WEIGHTS[one] for one in ripe), 1])[0]
            if kind and _kill(run, kind):
                killed_at[kind] = len(run.watch.done)
                run.lose(f"SIGKILL {kind}")
                done += 1
    run.settle("SIGKILLs")


def _kill(run: Run, kind: str) -> bool:
    stack = run.stack
    if kind == "decoder":
        return stack.kill_child("worker", run.dice, having="worker.guard")
    if kind != "database":
        return stack.kill(kind)
    if stack.cluster is None:
        # SQLite has no server: both processes that write die at the same moment.
        killed = [stack.kill("worker"), stack.kill("deliver")]
        return any(killed)
    if run.dice.random() < 0.5:
        return stack.kill_child("database", run.dice, having="postgres")
    return stack.kill("database")


def frozen_worker(run: Run, times: int) -> None:
    """SIGSTOP past the lease, while a second worker takes over what it held; then SIGCONT."""
    with run.load():
        for _ in range(times):
            run.flow()
            run.stack.kill("worker", signal.SIGSTOP)
            run.lose("SIGSTOP worker past its lease", alone=True)
            run.stack.second_worker.start()
            time.sleep(2 * LEASE)
            # It may have been stopped with SQLite's only write lock in hand: then nobody does anything.
            run.flow(seconds=45.0, required=False)
            run.stack.kill("worker", signal.SIGCONT)
            run.flow()
            run.stack.second_worker.stop()
    run.settle("frozen worker")


def broker(run: Run, times: int, seconds: float) -> None:
    """FLUSHALL, a restart, and a time without."""
    with run.load():
        for _ in range(times):
            run.flow()
            run.lose("FLUSHALL", alone=True)
            run.stack.flush_broker()
            run.flow()
            run.lose(f"broker down for {seconds:g} s", alone=True)
            run.stack.hold("broker")
            time.sleep(seconds)
            run.stack.release("broker")
            run.flow()
    run.settle("broker")


def database(run: Run, times: int, seconds: float) -> None:
    """A time without the database; the node goes on to receive."""
    with run.load():
        for _ in range(times):
            run.flow()
            run.lose(f"database down for {seconds:g} s", alone=True)
            with run.stack.database_down():
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    for film in run.films.next():
                        run.modality.send(film)
                    time.sleep(max(seconds / 20, 0.5))
                before = run.modality.outstanding
                if not run.wait(lambda: not run.modality.outstanding, 60, "database down"):
                    run.violations.append(f"database: {before} films were not taken while it was down.")
            run.flow()
    run.settle("database")
