"""The header of a compressed frame, and the Image Pixel module: understood, or refused with a reason.

The first byte picks the transfer syntax. Up to the separator follows a frame, after it a data set.
"""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset

from dicom_node import uids
from dicom_node.errors import Permanent
from worker.codestream import has_every_tile, read_header
from worker.pixels import LARGEST_FILM, pixel_format

SEPARATOR = b"\0|\0|"
_SYNTAXES = uids.TRANSFER_SYNTAXES


def one_input(content: bytes) -> None:
    """Read both headers, as a decoder child does before it allocates anything."""
    syntax = _SYNTAXES[(content or b"\0")[0] % len(_SYNTAXES)]
    frame, _, data_set = content[1:].partition(SEPARATOR)
    stream = read_header(frame, syntax)
    assert stream is None or stream.components >= 0
    assert has_every_tile(frame) in (True, False)
    header = _parsed(data_set)
    if header is None:
        return
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    try:
        form = pixel_format(header)
    except Permanent:
        return
    assert 0 < form.rows * form.columns <= LARGEST_FILM
    assert len(form.stored_values()) == 1 << form.bits_allocated


def _parsed(data_set: bytes) -> Dataset | None:
    try:
        return read_dataset(BytesIO(data_set), is_implicit_VR=False, is_little_endian=True)
    except Exception:  # noqa: BLE001 (pydicom raises almost anything; `worker.decode` refuses the file)
        return None
