"""The way from a spooled file to a film. Runs in a guarded child: files may be broken, hostile or huge."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info

from dicom_node import uids
from dicom_node.errors import Permanent, Reason, Retryable
from dicom_node.file_meta import HEAD_BYTES
from worker import preprocess
from worker.acquisition import vendor_of, view_of
from worker.attributes import text
from worker.eligibility import judge
from worker.findings import Eligibility, Film, Reading, Rejected, Verdict
from worker.grey import Grey, to_display, to_grey
from worker.pixels import PixelFormat, decode_pixels, pixel_format
from worker.report.identity import extract, patient_digest
from worker.settings import EligibilitySection


def read_film(
    path: Path,
    settings: EligibilitySection,
    *,
    sop_instance_uid: str = "",
    sha256: str | None = None,
    on_loaded: Callable[[], None] = lambda: None,
) -> Reading | Rejected:
    """Read, judge and decode one file; whatever is wrong with its content, this returns.

    Args:
        path: a Part 10 file.
        settings: which images are analysed.
        sop_instance_uid: of the spooled file, for the case that the file no longer tells.
        sha256: that the data set of a spooled file must have; None for a file from elsewhere.
        on_loaded: called once the bytes are here, before anything of them is looked at.

    Returns:
        A reading, whose film is None when the image is not analysed, or a rejection that says why.
        Sentences hold no value of the data set.

    Raises:
        Retryable: the file is there and the machine does not give it to us.
    """
    try:
        content = _load(path, sha256)
        on_loaded()
        return _read(path, content, settings)
    except Permanent as error:
        reason, sentence = error.reason, str(error)
    except MemoryError:
        reason, sentence = Reason.DECODER_MEMORY, "Decoding needs more memory than a decoder may take."
    return Rejected(sop_instance_uid=sop_instance_uid or path.stem, reason=reason, sentence=sentence)


def _read(path: Path, content: bytes, settings: EligibilitySection) -> Reading:
    with _refusing(Reason.UNREADABLE, "The data set cannot be read"):
        header = _parse(path, content)
        if "SOPInstanceUID" not in header:
            # pydicom makes an empty data set of one that ends within an element.
            raise Permanent(Reason.UNREADABLE, "The data set ends too early.")
        # Before any value is looked at: pydicom forgets the bytes of what it has decoded.
        source, digest = extract(header), patient_digest(header)
        eligibility = judge(header, settings)
        manufacturer, view = vendor_of(header), view_of(header)
    film = None
    if eligibility.reason is None:
        film, eligibility = _develop(header, eligibility)
    return Reading(
        sop_instance_uid=text(header, "SOPInstanceUID"),
        sop_class_uid=text(header, "SOPClassUID"),
        series_instance_uid=text(header, "SeriesInstanceUID"),
        eligibility=eligibility,
        source=source,
        patient_digest=digest,
        film=film,
        manufacturer=manufacturer,
        view=view,
    )


def _load(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Permanent(Reason.FILE_MISSING, "The spooled file is gone.") from None
    except OSError as error:
        # Too many open files, a disk or a mount that is away: nothing that the film is to blame for.
        raise Retryable(f"A spooled file cannot be read: {type(error).__name__} {error.errno}.") from None
    if sha256 is not None and hashlib.sha256(memoryview(content)[HEAD_BYTES:]).hexdigest() != sha256:
        raise Permanent(Reason.FILE_ALTERED, "The spooled file is not what was received.")
    return content


def _parse(path: Path, content: bytes) -> Dataset:
    # A deflated data set would be inflated while it is read: the syntax comes first.
    if read_file_meta_info(path).get("TransferSyntaxUID") not in uids.TRANSFER_SYNTAXES:
        raise Permanent(Reason.PIXELS_UNDECODABLE, "The transfer syntax is not one that is decoded.")
    return dcmread(BytesIO(content))


def _develop(header: Dataset, eligibility: Eligibility) -> tuple[Film | None, Eligibility]:
    with _refusing(Reason.PIXELS_UNDECODABLE, "The pixels cannot be decoded"):
        form = pixel_format(header)
        words_HW = decode_pixels(header, form)
        grey = to_grey(header, words_HW, form)
        if grey.flat:
            return None, replace(eligibility, verdict=Verdict.INELIGIBLE, reason=Reason.NO_CONTRAST)
        return _film(grey, form), eligibility


def _film(grey: Grey, form: PixelFormat) -> Film:
    return Film(
        input_HW=preprocess.to_input(grey.grey_HW),
        display_HW=to_display(grey.grey_HW),
        rows=form.rows,
        columns=form.columns,
        bits_stored=form.bits_stored,
        inverted=grey.inverted,
        window=grey.window,
    )


@contextlib.contextmanager
def _refusing(reason: Reason, what: str) -> Iterator[None]:
    """Turn whatever a parser or decoder raises into a rejection; its text may quote values."""
    try:
        yield
    except (Permanent, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (task boundary of the decoder child)
        raise Permanent(reason, f"{what} ({type(error).__name__}).") from None
