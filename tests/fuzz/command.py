"""The DIMSE command decoder: any bytes are a command that can be answered, or a `ProtocolError`."""

from __future__ import annotations

from dicom_node.dimse import Command, Field
from dicom_node.wire import ProtocolError


def one_input(content: bytes) -> None:
    """Decode, and answer what was understood."""
    try:
        request = Command.decode(content)
    except ProtocolError:
        return
    response = Command.decode(request.response(0xA700).encode())
    assert response.number(Field.STATUS) == 0xA700
    assert response.uid(Field.AFFECTED_SOP_INSTANCE) == request.uid(Field.AFFECTED_SOP_INSTANCE)
