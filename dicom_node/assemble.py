"""When a study is taken as complete: C-STORE does not say, so a quiet period does, with a hard cap."""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

from dicom_node.lanes import Lane, most_urgent


class Assembler:
    """Studies that are still arriving. Pure: times are seconds of any one monotonic clock.

    A study is released `quiet_seconds` after its last object or `cap_seconds` after its first,
    whichever comes first; an object that comes later opens it anew.
    """

    def __init__(self, quiet_seconds: float, cap_seconds: float) -> None:
        self._quiet = quiet_seconds
        self._cap = cap_seconds
        self._open: dict[str, tuple[float, float, Lane]] = {}
        # One entry for each open study, never later than its release: thousands may wait while others arrive.
        self._waiting: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._open)

    def arrived(self, study_instance_uid: str, now: float, lane: Lane = Lane.ROUTINE) -> None:
        """Note that an object of the study has arrived, and the lane that it belongs in."""
        known = self._open.get(study_instance_uid)
        first, before = (now, lane) if known is None else (known[0], known[2])
        self._open[study_instance_uid] = (first, now, most_urgent((before, lane)))
        if known is None:
            heappush(self._waiting, (self._release_time(study_instance_uid), study_instance_uid))

    def due(self, now: float) -> dict[str, Lane]:
        """Release the studies that are complete, each once, into the lane of its most urgent object."""
        released: dict[str, Lane] = {}
        while (due := self.next_due()) is not None and due <= now:
            _, uid = heappop(self._waiting)
            released[uid] = self._open.pop(uid)[2]
        return released

    def next_due(self) -> float | None:
        """When the next study is released if nothing more arrives; None while there is none."""
        while self._waiting:
            noted, uid = self._waiting[0]
            if (due := self._release_time(uid)) <= noted:
                return noted
            heapreplace(self._waiting, (due, uid))  # more of it has arrived since
        return None

    def _release_time(self, study_instance_uid: str) -> float:
        first, last, _ = self._open[study_instance_uid]
        return min(last + self._quiet, first + self._cap)
