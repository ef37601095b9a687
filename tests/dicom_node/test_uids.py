from __future__ import annotations

import pytest

from dicom_node.status import NextStep, next_step_of
from dicom_node.uids import derive_uid, is_valid_uid


@pytest.mark.parametrize("uid", ["1.2", "0.0", "1.2.840.10008.1.2", "1." + "2" * 62, "2.25.0"])
def test_knows_a_uid(uid: str) -> None:
    """Digits and dots, at most 64 characters."""
    assert is_valid_uid(uid)


@pytest.mark.parametrize(
    "uid",
    [
        "",
        "1",
        "..",
        "1.",
        ".1",
        "1..2",
        "1.02",
        "1.2\n",
        "1.2 ",
        "../1",
        "1.a",
        "1.\u0662",
        "1.2\0",
        "1." + "2" * 63,
    ],
)
def test_knows_what_is_no_uid(uid: str) -> None:
    """Nothing that could leave its directory, and nothing beyond PS3.5 9.1."""
    assert not is_valid_uid(uid)


def test_derives_the_same_uid_for_ever() -> None:
    """A derived UID is part of what is in other people's archives: it may never change."""
    assert derive_uid("1.2.3", "a") == "2.25.236692757732529723132473919611510149510"
    assert derive_uid("1.2.3", "a") != derive_uid("1.2.3a")
    assert is_valid_uid(derive_uid("1.2.3", "a"))


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (0x0000, NextStep.STORED),
        (0xB000, NextStep.STORED),
        (0xB007, NextStep.STORED),
        (0x0111, NextStep.STORED),
        (0xA700, NextStep.RETRY),
        (0xA7FF, NextStep.RETRY),
        (0x0213, NextStep.RETRY),
        (0xA900, NextStep.DEAD_LETTER),
        (0xC000, NextStep.DEAD_LETTER),
        (0x0110, NextStep.DEAD_LETTER),
        (0x0122, NextStep.PARK),
        (0x0124, NextStep.PARK),
    ],
)
def test_decides_by_the_status(status: int, step: NextStep) -> None:
    """What a sender does after a C-STORE."""
    assert next_step_of(status) is step
