"""A picture file as a CR image, for films that come without DICOM around them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import Permanent, Reason
from dicom_node.uids import COMPUTED_RADIOGRAPHY, derive_uid
from worker.pixels import LARGEST_FILM


def wrap_picture(path: Path) -> Dataset:
    """Wrap a PNG or JPEG as CR. What the picture does not tell (view, age) stays open.

    Raises:
        Permanent: it is no picture that can be read.
    """
    content = np.fromfile(path, np.uint8)
    grey_HW = _decoded(path, content)
    if grey_HW is None or grey_HW.dtype not in (np.uint8, np.uint16):
        raise Permanent(Reason.UNREADABLE, f"{path.name} is neither DICOM nor a PNG or JPEG.")
    digest = hashlib.sha256(content.tobytes()).hexdigest()
    bits = 8 * grey_HW.itemsize
    ds = Dataset()
    ds.SOPClassUID = COMPUTED_RADIOGRAPHY
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (
        derive_uid("picture", digest, level) for level in ("study", "series", "image")
    )
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.PatientName = ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientID = f"PICTURE-{digest[:12]}"
    ds.Modality = "CR"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = ds.SeriesNumber = ds.InstanceNumber = None
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = grey_HW.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    pixels = grey_HW.astype(grey_HW.dtype.newbyteorder("<")).tobytes()
    ds.add_new("PixelData", "OB" if bits == 8 else "OW", pixels + b"\0" * (len(pixels) % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _decoded(path: Path, content: NDArray[np.uint8]) -> NDArray[np.generic] | None:
    try:
        with Image.open(path) as picture:  # reads the head only
            if not 0 < picture.width * picture.height <= LARGEST_FILM:
                raise Permanent(Reason.UNREADABLE, f"{path.name} has a size that no film has.")
        return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except (UnidentifiedImageError, Image.DecompressionBombError, cv2.error):
        return None
