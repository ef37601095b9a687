from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode, encode

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.wire import ProtocolError


def request() -> C_STORE_RQ:
    """A C-STORE request as pynetdicom makes it."""
    primitive = C_STORE()
    primitive.MessageID = 7
    primitive.AffectedSOPClassUID = uids.COMPUTED_RADIOGRAPHY
    primitive.AffectedSOPInstanceUID = "1.2.3"
    primitive.Priority = 2
    primitive.DataSet = io.BytesIO(b"ab")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    return message


def request_bytes() -> bytes:
    """The request, encoded by pynetdicom."""
    encoded: bytes = encode(request().command_set, True, True)
    return encoded


def test_reads_what_pynetdicom_writes() -> None:
    """A C-STORE request of pynetdicom has its UIDs, its message id and a data set."""
    command = Command.decode(encode(request().command_set, True, True))
    assert command.number(Field.COMMAND) == Operation.C_STORE_RQ
    assert command.number(Field.MESSAGE_ID) == 7
    assert command.uid(Field.AFFECTED_SOP_CLASS) == uids.COMPUTED_RADIOGRAPHY
    assert command.uid(Field.AFFECTED_SOP_INSTANCE) == "1.2.3"
    assert command.has_data_set


def test_pynetdicom_reads_what_we_answer() -> None:
    """Our response is, byte for byte, what pynetdicom would answer with the same values."""
    ours = Command.decode(encode(request().command_set, True, True)).response(0xA700).encode()
    primitive = C_STORE()
    primitive.MessageIDBeingRespondedTo = 7
    primitive.AffectedSOPClassUID = uids.COMPUTED_RADIOGRAPHY
    primitive.AffectedSOPInstanceUID = "1.2.3"
    primitive.Status = 0xA700
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    theirs = message.command_set
    assert decode(io.BytesIO(ours), True, True) == decode(io.BytesIO(encode(theirs, True, True)), True, True)
    assert ours == encode(theirs, True, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\0" * 12,
        b"\x08\0\0\0\4\0\0\0abcd",
        b"\0\0\2\0\xff\xff\xff\xffabcd",
        # Found by fuzzing: a UID that stands in the response, too, and could not be encoded there.
        request_bytes().replace(b"1.2.3\0", b"1.\xe9.3\0"),
    ],
)
def test_refuses_what_is_no_command(content: bytes) -> None:
    """Bytes that are no command set of group 0000 are a protocol error."""
    with pytest.raises(ProtocolError):
        Command.decode(content)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_an_error(content: bytes) -> None:
    """Nothing but `ProtocolError` comes out of hostile bytes, and what is read can be answered."""
    try:
        command = Command.decode(content)
    except ProtocolError:
        return
    assert Command.decode(command.response(0).encode()).number(Field.STATUS) == 0
