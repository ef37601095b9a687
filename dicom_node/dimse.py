"""DIMSE command sets (PS3.7 6.3, Annex E): Implicit VR Little Endian, group 0000, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from struct import Struct

from dicom_node.wire import ProtocolError

MAXIMUM_COMMAND_BYTES = 16_384
NO_DATA_SET = 0x0101  # (0000,0800), PS3.7 E.1
DATA_SET_FOLLOWS = 0x0001

_ELEMENT = Struct("<HHL")
_US = Struct("<H")
_UL = Struct("<L")


class Field(IntEnum):
    """Element numbers within group 0000 (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS = 0x0002
    REQUESTED_SOP_CLASS = 0x0003
    COMMAND = 0x0100
    MESSAGE_ID = 0x0110
    RESPONDED_TO = 0x0120
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    AFFECTED_SOP_INSTANCE = 0x1000
    REQUESTED_SOP_INSTANCE = 0x1001
    EVENT_TYPE = 0x1002
    ACTION_TYPE = 0x1008


class Operation(IntEnum):
    """Values of the command field (0000,0100), PS3.7 E.1."""

    C_STORE_RQ = 0x0001
    C_FIND_RQ = 0x0020
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_ACTION_RQ = 0x0130
    C_CANCEL_RQ = 0x0FFF


RESPONSE = 0x8000  # the bit that makes a request's command field that of its response

_TEXT = {
    Field.AFFECTED_SOP_CLASS,
    Field.REQUESTED_SOP_CLASS,
    Field.AFFECTED_SOP_INSTANCE,
    Field.REQUESTED_SOP_INSTANCE,
}
_NUMBER = set(Field) - _TEXT - {Field.GROUP_LENGTH}


class Command:
    """A command set: numbers and UIDs by element number of group 0000."""

    def __init__(self, elements: Mapping[Field, int | str]) -> None:
        self._elements = dict(elements)

    def number(self, field: Field) -> int | None:
        """The value of an element of VR US; None where it is absent."""
        value = self._elements.get(field)
        return value if isinstance(value, int) else None

    def uid(self, field: Field) -> str:
        """The value of an element of VR UI; empty where it is absent."""
        value = self._elements.get(field)
        return value if isinstance(value, str) else ""

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows."""
        return self._elements.get(Field.DATA_SET_TYPE, NO_DATA_SET) != NO_DATA_SET

    def encode(self) -> bytes:
        """Encode, with the group length in front and elements in ascending order."""
        body = bytearray()
        for field, value in sorted(self._elements.items()):
            raw = value.encode("ascii") if isinstance(value, str) else _US.pack(value)
            raw += b"\0" * (len(raw) % 2)
            body += _ELEMENT.pack(0, field, len(raw)) + raw
        return _ELEMENT.pack(0, Field.GROUP_LENGTH, 4) + _UL.pack(len(body)) + bytes(body)

    @classmethod
    def decode(cls, content: bytes) -> Command:
        """Decode; elements that we do not use are skipped. Raises `ProtocolError` where it is none."""
        elements: dict[Field, int | str] = {}
        offset = 0
        while offset < len(content):
            if offset + _ELEMENT.size > len(content):
                raise ProtocolError("the command set ends within an element")
            group, number, length = _ELEMENT.unpack_from(content, offset)
            offset += _ELEMENT.size
            value = content[offset : offset + length]
            if group != 0 or len(value) != length:
                raise ProtocolError("the command set holds what is no element of group 0000")
            offset += length
            if number in _TEXT:
                if not value.isascii():
                    # It stands in the response, too, and could not be encoded there.
                    raise ProtocolError("a UID of the command set is no text")
                elements[Field(number)] = value.rstrip(b"\0 ").decode("ascii")
            elif number in _NUMBER and length == _US.size:
                elements[Field(number)] = _US.unpack(value)[0]
        if Field.COMMAND not in elements:
            raise ProtocolError("the command set names no command")
        return cls(elements)

    def numbered(self, message_id: int, *, has_data_set: bool) -> Command:
        """This request, ready to be sent: with its message id and whether a data set follows."""
        follows = DATA_SET_FOLLOWS if has_data_set else NO_DATA_SET
        return Command({**self._elements, Field.MESSAGE_ID: message_id, Field.DATA_SET_TYPE: follows})

    def response(self, status: int) -> Command:
        """The response to this request, without a data set."""
        echoed = (Field.AFFECTED_SOP_CLASS, Field.AFFECTED_SOP_INSTANCE, Field.EVENT_TYPE)
        elements = {field: self._elements[field] for field in echoed if field in self._elements}
        elements[Field.COMMAND] = (self.number(Field.COMMAND) or 0) | RESPONSE
        elements[Field.RESPONDED_TO] = self.number(Field.MESSAGE_ID) or 0
        elements[Field.DATA_SET_TYPE] = NO_DATA_SET
        elements[Field.STATUS] = status
        return Command(elements)
