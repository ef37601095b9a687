"""One run of chaos: films flow, things break, and at rest the oracle is asked."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.modality import Films, Modality
from tests.chaos.oracle import Judgement, Sent
from tests.chaos.stack import Stack
from tests.chaos.watch import Watch

IN_FLIGHT = 8
"""Films that are on their way at the same time: a backlog would hide how long a loss costs."""
EXPECTED_ENDS = {"scored", "NOT_FRONTAL", "CONFLICTING_CONTENT", "DECODER_CRASHED"}
"""DECODER_CRASHED: a decoder that is killed twice with the same film in hand looks no different."""
_REST_SECONDS = 600.0
_FLOW_SECONDS = 300.0
SAY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Something that was done to the system, by the monotonic clock."""

    kind: str
    at: float
    alone: bool
    """Whether the system was given the time to recover before the next."""


@dataclass
class Run:
    """The state of a run. Use it as a context: it starts the stack, and ends it."""

    stack: Stack
    dice: random.Random
    say: Callable[[str], None]
    losses: list[Loss] = field(default_factory=list)
    points: dict[str, set[str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    duplicated: set[str] = field(default_factory=set)
    ends: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Run:
        try:
            self.stack.start()
        except BaseException:  # `__exit__` is not called then, and what has started would go on
            self.stack.stop()
            raise
        self.films = Films(self.stack.folder / "films", self.dice)
        self.modality = Modality(self.stack.port)
        self.watch = Watch(self.stack.settings)
        return self

    def __exit__(self, *exception: object) -> None:
        self.modality.close()
        self.watch.close()
        self.stack.stop()

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

        if not self.wait(rests, _REST_SECONDS, f"{phase}: coming to rest"):
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
        if not judgement.ends.get("scored"):
            self.violations.append(f"{phase}: no image was scored.")
        self.say(f"{phase}: {len(judgement.violations)} violations; {self.counts()}")

    def wait(self, probe: Callable[[], bool], seconds: float, what: str) -> bool:
        """Look until the answer is true, and say meanwhile how far it is; False at the deadline."""
        deadline, say_at = time.monotonic() + seconds, time.monotonic() + SAY_SECONDS
        while not probe():
            now = time.monotonic()
            if now > deadline:
                return False
            if now > say_at:
                self.say(f"{what}; {self.counts()}")
                say_at = now + SAY_SECONDS
            time.sleep(0.1)
        return True

    def counts(self) -> str:
        return f"{len(self.sent())} sent, {len(self.watch.done)} done"

    def lose(self, kind: str, *, alone: bool = False) -> Loss:
        """Note that something is done to the system now."""
        self.losses.append(Loss(kind=kind, at=time.monotonic(), alone=alone))
        return self.losses[-1]

    def recovered(self, loss: Loss) -> bool:
        """Whether all that was sent before it is done."""
        return not [one for one, at in self.sent().items() if at < loss.at and one not in self.watch.done]

    def flow(self, films: int = 3, *, seconds: float = _FLOW_SECONDS, required: bool = True) -> None:
        """Wait until something more is done, so that a loss finds a system at work."""
        enough = len(self.watch.done) + films
        if not self.wait(lambda: len(self.watch.done) >= enough, seconds, "films flow") and required:
            self.violations.append("The films do not flow any more.")

    def recovery(self) -> dict[str, dict[str, Any]]:
        """Seconds from a loss until all that was sent before it was committed, by kind; of those alone."""
        found: dict[str, list[float]] = {}
        sent = self.sent()
        for loss in (one for one in self.losses if one.alone):
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
