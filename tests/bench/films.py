"""Films for the benchmark: one phantom's pixels under as many UIDs as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from dicom_node.uids import derive_uid
from worker.phantom import phantom_dataset

SIZES = {"10mb": (2500, 2048), "3mb": (1400, 1120), "0.5mb": (512, 512)}
"""Rows and columns of a CR, 12 bits in 16."""
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    JPEGLosslessSV1: lambda grey: imagecodecs.jpeg8_encode(
        grey, lossless=True, predictor=1, bitspersample=12
    ),
    JPEG2000Lossless: lambda grey: imagecodecs.jpeg2k_encode(
        grey, reversible=True, bitspersample=12, codecformat="j2k"
    ),
}


def write_studies(
    folder: Path,
    studies: int,
    *,
    images: int = 1,
    salt: str,
    size: str = "10mb",
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> list[list[Path]]:
    """Write CRs of a size; one list of files a study."""
    folder.mkdir(parents=True, exist_ok=True)
    template = _template(size, transfer_syntax)
    return [list(_images(template, folder, study, images, salt)) for study in range(studies)]


def _template(size: str, transfer_syntax: str) -> Dataset:
    rows, columns = SIZES[size]
    template = phantom_dataset(7, rows=rows, columns=columns)
    if transfer_syntax in ENCODERS:
        template.PixelData = encapsulate([ENCODERS[transfer_syntax](template.pixel_array)])
        template["PixelData"].VR, template["PixelData"].is_undefined_length = "OB", True
        template.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return template


def _images(template: Dataset, folder: Path, study: int, images: int, salt: str) -> Iterator[Path]:
    for image in range(images):
        template.StudyInstanceUID = derive_uid(salt, str(study))
        template.SeriesInstanceUID = derive_uid(salt, str(study), "series")
        template.SOPInstanceUID = derive_uid(salt, str(study), str(image))
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.PatientID = f"PHANTOM-{salt}-{study}"
        path = folder / f"{salt}-{study}-{image}.dcm"
        template.save_as(path, enforce_file_format=True)
        yield path
