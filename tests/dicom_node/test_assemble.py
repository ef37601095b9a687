from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.assemble import Assembler
from dicom_node.lanes import Lane


def test_releases_after_a_quiet_period() -> None:
    """A study is due when nothing has come for the quiet period, and once only."""
    assembler = Assembler(5.0, 60.0)
    assembler.arrived("1.2", 0.0)
    assembler.arrived("1.2", 4.0)
    assert list(assembler.due(8.9)) == []
    assert list(assembler.due(9.0)) == ["1.2"]
    assert list(assembler.due(100.0)) == []


def test_releases_at_the_cap_in_any_case() -> None:
    """A study that never rests is due at the cap, counted from its first object."""
    assembler = Assembler(5.0, 10.0)
    for second in range(10):
        assembler.arrived("1.2", float(second))
    assert list(assembler.due(10.0)) == ["1.2"]


def test_a_late_object_opens_the_study_anew() -> None:
    """After its release a study can become due again."""
    assembler = Assembler(5.0, 60.0)
    assembler.arrived("1.2", 0.0)
    assembler.due(5.0)
    assembler.arrived("1.2", 6.0)
    assert list(assembler.due(11.0)) == ["1.2"]


def test_is_released_into_the_lane_of_its_most_urgent_object() -> None:
    """Whichever came first; a study that is opened anew begins anew."""
    assembler = Assembler(5.0, 60.0)
    assembler.arrived("1.2", 0.0, Lane.BACKFILL)
    assembler.arrived("1.2", 1.0, Lane.STAT)
    assembler.arrived("1.2", 2.0, Lane.BACKFILL)
    assert assembler.due(7.0) == {"1.2": Lane.STAT}
    assembler.arrived("1.2", 8.0, Lane.BACKFILL)
    assert assembler.due(13.0) == {"1.2": Lane.BACKFILL}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["1.1", "1.2", "1.3"]), st.floats(0, 100)), max_size=30))
def test_every_study_is_released(arrivals: list[tuple[str, float]]) -> None:
    """Whatever arrives, waiting for `next_due` releases every study, never before its time."""
    assembler = Assembler(5.0, 20.0)
    released = set()
    for study, now in sorted(arrivals, key=lambda one: one[1]):
        released.update(assembler.due(now))
        assembler.arrived(study, now)
        assert now <= assembler.next_due() <= now + 5.0
    while (now := assembler.next_due()) is not None:
        released.update(due := assembler.due(now))
        assert due
    assert released == {study for study, _ in arrivals}
