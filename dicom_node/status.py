"""DIMSE statuses by name, each with the place in the standard that defines it."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Statuses that this system answers or understands (PS3.4 B.2.3, J.3; PS3.7 C)."""

    SUCCESS = 0x0000
    # C-STORE as a receiver, PS3.4 Table B.2-1
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000
    # Warnings of a peer, PS3.4 Table B.2-1: the object is stored
    COERCION_OF_DATA_ELEMENTS = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    DATA_SET_DOES_NOT_MATCH_WARNING = 0xB007
    # General, PS3.7 Annex C
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    INVALID_OBJECT_INSTANCE = 0x0117
    NOT_AUTHORISED = 0x0124
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    UNRECOGNISED_OPERATION = 0x0211
    RESOURCE_LIMITATION = 0x0213


class NextStep(IntEnum):
    """What a sender does after a C-STORE."""

    STORED = 0
    RETRY = 1
    DEAD_LETTER = 2
    PARK = 3


def next_step_of(status: int) -> NextStep:
    """Decide from the status of a C-STORE response (PS3.4 B.2.3; PS3.7 C)."""
    if status == Status.SUCCESS or status & 0xF000 == 0xB000:
        return NextStep.STORED
    if status == Status.DUPLICATE_SOP_INSTANCE:
        # An answer to our own second try; whether it holds the object is for the proof to say.
        return NextStep.STORED
    if status & 0xFF00 == 0xA700 or status == Status.RESOURCE_LIMITATION:
        return NextStep.RETRY
    if status in (Status.SOP_CLASS_NOT_SUPPORTED, Status.NOT_AUTHORISED):
        return NextStep.PARK
    return NextStep.DEAD_LETTER
