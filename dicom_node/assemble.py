"""When a study is taken as complete: C-STORE does not say, so a quiet period does, with a hard cap."""

from __future__ import annotations

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

    def __len__(self) -> int:
        return len(self._open)

    def arrived(self, study_instance_uid: str, now: float, lane: Lane = Lane.ROUTINE) -> None:
        """Note that an object of the study has arrived, and the lane that it belongs in."""
        first, _, before = self._open.get(study_instance_uid, (now, now, lane))
        self._open[study_instance_uid] = (first, now, most_urgent((before, lane)))

    def due(self, now: float) -> dict[str, Lane]:
        """Release the studies that are complete, each once, into the lane of its most urgent object."""
        released = {
            uid: lane
            for uid, (first, last, lane) in self._open.items()
            if self._release_time(first, last) <= now
        }
        for uid in released:
            del self._open[uid]
        return released

    def next_due(self) -> float | None:
        """When the next study is released if nothing more arrives; None while there is none."""
        return min((self._release_time(first, last) for first, last, _ in self._open.values()), default=None)

    def _release_time(self, first: float, last: float) -> float:
        return min(last + self._quiet, first + self._cap)
