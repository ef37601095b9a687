"""imagecodecs as pydicom's decoder for every compressed transfer syntax that we accept.

One well-kept package for all of them: bit-exact where the syntax is lossless, and several times faster
than the alternatives for most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES: dict[uid.UID, tuple[str, ...]] = {}
"""Asked for by pydicom of every plug-in; ours is always there."""

_CODECS: dict[uid.UID, Callable[[bytes], NDArray[np.generic]]] = {
    uid.JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    uid.JPEGLossless: imagecodecs.jpeg8_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
    uid.HTJ2KLossless: imagecodecs.htj2k_decode,
    uid.HTJ2KLosslessRPCL: imagecodecs.htj2k_decode,
    uid.HTJ2K: imagecodecs.htj2k_decode,
}


def is_available(transfer_syntax_uid: str) -> bool:
    """Whether this plug-in decodes a transfer syntax."""
    return transfer_syntax_uid in _CODECS or transfer_syntax_uid == uid.RLELossless


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Decode one frame for pydicom.

    Raises:
        ValueError: the frame holds another number of samples than the data set says.
    """
    if runner.transfer_syntax == uid.RLELossless:
        dtype = np.dtype(f"<u{runner.bits_allocated // 8}")
        decoded = np.frombuffer(imagecodecs.dicomrle_decode(frame, dtype=dtype), dtype)
    else:
        decoded = np.ascontiguousarray(_CODECS[runner.transfer_syntax](frame))
    if decoded.size != runner.rows * runner.columns * runner.samples_per_pixel:
        raise ValueError("the frame holds another number of samples than the data set says")
    runner.set_option("bits_allocated", 8 * decoded.itemsize)
    # pydicom only looks at the bytes: a view spares a copy.
    return cast(bytearray, decoded.data.cast("B"))


def register() -> None:
    """Add the plug-in to pydicom's decoders; again is harmless."""
    for transfer_syntax in (*_CODECS, uid.RLELossless):
        decoder = get_decoder(transfer_syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))


register()
