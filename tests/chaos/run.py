"""One run of chaos: films flow, things break, and at rest the oracle is asked."""

from __future__ import annotations

import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dicom_node.failpoints import POINTS
from tests.chaos.modality import Films, Modality
from tests.chaos.oracle import Judgement, Sent
from tests.chaos.stack import LEASE, Stack
from tests.chaos.watch import Watch

IN_FLIGHT = 8
"""Films that are on their way at the same time: a backlog would hide how long a loss costs."""
EXPECTED_ENDS = {"scored", "NOT_FRONTAL", "CONFLICTING_CONTENT", "DECODER_CRASHED"}
"""DECODER_CRASHED: a decoder that is killed twice with the same film in hand looks no different."""
_REST_SECONDS = 600.0
_POINT_SECONDS = 600.0
_FLOW_SECONDS = 300.0
_SAY_SECONDS = 10.0

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


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Something that was done to the system, by the monotonic clock."""

    kind: str
    at: float


@dataclass
class Run:
    """The state of a run. Use it as a context: it starts the stack, and ends it."""

    stack: Stack
    dice: random.Random
    say: Callable[[str], None]
    losses: list[Loss] = field(default_factory=list)
    points: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    duplicated: set[str] = field(default_factory=set)
    ends: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Run:
        self.stack.start()
        self.films = Films(self.stack.folder / "films", self.dice)
        self.modality = Modality(self.stack.port)
        self.watch = Watch(self.stack.settings)
        return self

    def __exit__(self, *exception: object) -> None:
        self.modality.close()
        self.watch.close()
        self.stack.stop()

    # What flows

    def sent(self) -> dict[Sent, float]:
        return self.modality.sent()

    def in_flight(self) -> int:
        return self.modality.outstanding + len(self.sent().keys() - self.watch.done.keys())

    @contextmanager
    def load(self) -> Iterator[None]:
        """Films flow for as long as the block runs, and no faster than they are done."""
        stop = threading.Event()

        def feed() -> None:
            while not stop.wait(0.05):
                if self.in_flight() < IN_FLIGHT:
                    for film in self.films.next():
                        self.modality.send(film)

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            yield
        finally:
            stop.set()
            feeder.join()

    def settle(self, phase: str) -> None:
        """Wait until nothing is left to do, and ask the oracle."""

        def rests() -> bool:
            return self.modality.outstanding == 0 and self.watch.is_at_rest(self.sent())

        if not self._wait(rests, _REST_SECONDS, f"{phase}: coming to rest"):
            self.violations.append(f"{phase}: not at rest after {_REST_SECONDS:.0f} s.")
        judgement: Judgement = self.stack.judge(list(self.sent()))
        self.ends = dict(judgement.ends)
        self.lost.update(judgement.lost)
        self.duplicated.update(judgement.duplicated)
        self.violations += [f"{phase}: {sentence}" for sentence in judgement.violations]
        self.violations += [
            f"{phase}: images ended as {end}, for no reason that was given them."
            for end in judgement.ends.keys() - EXPECTED_ENDS
        ]
        self.say(f"{phase}: {len(judgement.violations)} violations; {self._counts()}")

    def _wait(self, probe: Callable[[], bool], seconds: float, what: str) -> bool:
        deadline, say_at = time.monotonic() + seconds, time.monotonic() + _SAY_SECONDS
        while not probe():
            now = time.monotonic()
            if now > deadline:
                return False
            if now > say_at:
                self.say(f"{what}; {self._counts()}")
                say_at = now + _SAY_SECONDS
            time.sleep(0.1)
        return True

    def _counts(self) -> str:
        return f"{len(self.sent())} sent, {len(self.watch.done)} done"

    def _lose(self, kind: str) -> None:
        self.losses.append(Loss(kind=kind, at=time.monotonic()))

    # What is done to it

    def quiet(self, seconds: float) -> None:
        """Nothing breaks: the time that the way itself takes, to compare with."""
        with self.load():
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(2.0)
                self._lose("nothing")
        self.settle("quiet")

    def failpoints(self, action: str, points: dict[str, tuple[str, ...]] | None = None) -> None:
        """Every point acts once, in the order in which the films come by."""
        marks = self.stack.folder / "marks"
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
        self.stack.arm({process: ";".join(traps) for process, traps in armed.items()})
        phase, seen = f"failpoints, {action}", set[str]()

        def all_seen() -> bool:
            for name in [name for name, mark in wanted.items() if name not in seen and mark.exists()]:
                seen.add(name)
                self._lose(f"failpoint {action.partition(':')[0]}")
                self.points.setdefault(name, {})[action] = self.losses[-1].at
            return len(seen) == len(wanted)

        with self.load():
            if not self._wait(all_seen, _POINT_SECONDS, phase):
                missed = ", ".join(sorted(wanted.keys() - seen))
                self.violations.append(f"{phase}: never reached: {missed}.")
        self.settle(phase)
        for name in ("node", "worker", "deliver"):
            self.stack.programs[name].environment = {}

    def kills(self, number: int, mean_seconds: float, *, only: Collection[str] = WEIGHTS) -> None:
        """So many SIGKILLs at random, each to a process of one of these kinds."""
        # A worker starts in seconds: one that dies before it has done anything is no load, only a pause.
        done, done_before, say_at = 0, 0, time.monotonic() + _SAY_SECONDS
        with self.load():
            while done < number:
                time.sleep(min(self.dice.expovariate(1 / mean_seconds), 3 * mean_seconds))
                kind = self.dice.choices(list(only), [WEIGHTS[one] for one in only])[0]
                if kind in ("worker", "database") and len(self.watch.done) < done_before + 2:
                    continue
                if self._kill(kind):
                    if kind in ("worker", "database"):
                        done_before = len(self.watch.done)
                    self._lose(f"SIGKILL {kind}")
                    done += 1
                if time.monotonic() > say_at:
                    self.say(f"{done} of {number} SIGKILLs; {self._counts()}")
                    say_at = time.monotonic() + _SAY_SECONDS
        self.settle("SIGKILLs")

    def _kill(self, kind: str) -> bool:
        stack = self.stack
        if kind == "decoder":
            return stack.kill_child("worker", self.dice, having="worker.guard")
        if kind != "database":
            return stack.kill(kind)
        if stack.cluster is None:
            # SQLite has no server: both processes that write die at the same moment.
            killed = [stack.kill("worker"), stack.kill("deliver")]
            return any(killed)
        if self.dice.random() < 0.5:
            return stack.kill_child("database", self.dice, having="postgres")
        return stack.kill("database")

    def frozen_worker(self, times: int) -> None:
        """SIGSTOP past the lease, while a second worker takes over what it held; then SIGCONT."""
        with self.load():
            for _ in range(times):
                self._flow()
                self.stack.kill("worker", signal.SIGSTOP)
                self._lose("SIGSTOP worker past its lease")
                self.stack.second_worker.start()
                time.sleep(2 * LEASE)
                # It may have been stopped with SQLite's only write lock in hand: then nobody does anything.
                self._flow(seconds=45.0, required=False)
                self.stack.kill("worker", signal.SIGCONT)
                self._flow()
                self.stack.second_worker.stop()
        self.settle("frozen worker")

    def broker(self, times: int, seconds: float) -> None:
        """FLUSHALL, a restart, and a time without."""
        with self.load():
            for _ in range(times):
                self._flow()
                self._lose("FLUSHALL")
                self.stack.flush_broker()
                self._flow()
                self._lose(f"broker down for {seconds:g} s")
                self.stack.hold("broker")
                time.sleep(seconds)
                self.stack.release("broker")
                self._flow()
        self.settle("broker")

    def database(self, times: int, seconds: float) -> None:
        """A time without the database; the node goes on to receive."""
        with self.load():
            for _ in range(times):
                self._flow()
                self._lose(f"database down for {seconds:g} s")
                with self.stack.database_down():
                    end = time.monotonic() + seconds
                    while time.monotonic() < end:
                        for film in self.films.next():
                            self.modality.send(film)
                        time.sleep(max(seconds / 20, 0.5))
                    before = self.modality.outstanding
                    if not self._wait(lambda: not self.modality.outstanding, 60, "database down"):
                        self.violations.append(f"database: {before} films were not taken while it was down.")
                self._flow()
        self.settle("database")

    def _flow(self, *, seconds: float = _FLOW_SECONDS, required: bool = True) -> None:
        """Wait until something more is done, so that a loss finds a system at work."""
        before = len(self.watch.done)
        if not self._wait(lambda: len(self.watch.done) >= before + 3, seconds, "films flow") and required:
            self.violations.append("The films do not flow any more.")

    # What came of it

    def recovery(self) -> dict[str, dict[str, Any]]:
        """Seconds from each loss until all that was sent before it was committed, by kind of loss."""
        found: dict[str, list[float]] = {}
        sent = self.sent()
        for loss in self.losses:
            ends = [
                self.watch.done[one] for one, at in sent.items() if at < loss.at and one in self.watch.done
            ]
            found.setdefault(loss.kind, []).append(
                max([at - loss.at for at in ends if at > loss.at], default=0.0)
            )
        return {
            kind: {
                "times": len(seconds),
                "median": round(statistics.median(seconds), 1),
                "max": round(max(seconds), 1),
            }
            for kind, seconds in found.items()
        }

    def summary(self) -> dict[str, Any]:
        return {
            "done": dict(Counter(loss.kind for loss in self.losses)),
            "restarts": dict(self.stack.restarts),
            "failpoints": {name: sorted(actions) for name, actions in sorted(self.points.items())},
            "sent": len(self.sent()),
            "tries": self.modality.tries,
            "answers": self.modality.answers,
            "ends": self.ends,
            "lost": len(self.lost),
            "duplicated": len(self.duplicated),
            "violations": self.violations,
            "recovery_seconds": self.recovery(),
        }
