"""A phantom's film as a modality would send it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian

from dicom_node import uids
from worker.phantom.projection import View
from worker.phantom.radiograph import radiograph

PATIENT_ID_PREFIX = "PHANTOM-"
"""No hospital's patient: every phantom's PatientID starts so."""

_HEIGHT_MM = 430.0


def phantom_dataset(
    seed: int,
    *,
    rows: int = 2500,
    columns: int = 2048,
    bits: int = 12,
    view: View = "PA",
    opacity: float = 0.0,
    modality: Literal["CR", "DX"] = "CR",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    transfer_syntax_uid: str = uids.EXPLICIT_VR_LITTLE_ENDIAN,
    salt: str = "",
) -> Dataset:
    """Make a CR or DX data set around `radiograph`, with file meta, ready for `dcmwrite` or C-STORE.

    UIDs follow from `seed`, `salt` and the view: the same call gives the same object, and two views
    of one seed are two images of one study. Another `salt` is another patient and study.
    """
    grey_HW = radiograph(seed, rows=rows, columns=columns, bits=bits, view=view, opacity=opacity)
    ds = Dataset()
    _identify(ds, seed, salt, view)
    _describe(ds, view, modality)
    _set_pixels(ds, grey_HW, bits, photometric, big_endian=transfer_syntax_uid == ExplicitVRBigEndian)
    if modality == "DX":
        _describe_digital(ds, photometric)
    else:
        ds.SOPClassUID = uids.COMPUTED_RADIOGRAPHY
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    return ds


def _identify(ds: Dataset, seed: int, salt: str, view: View) -> None:
    name = ("phantom", str(seed), salt)
    study = uids.derive_uid(*name, "study")
    ds.PatientName = "PHANTOM^CHEST"
    ds.PatientID = f"{PATIENT_ID_PREFIX}{uids.derive_uid(*name, 'patient')[-10:]}"
    ds.PatientBirthDate = "19600101"
    ds.PatientSex = "O"
    ds.PatientAge = "060Y"
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = uids.derive_uid(*name, view, "series")
    ds.SOPInstanceUID = uids.derive_uid(*name, view, "image")
    ds.StudyID = study[-8:]
    ds.AccessionNumber = f"PH{study[-10:]}"
    ds.ReferringPhysicianName = ""
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.StudyDescription = "Chest, synthetic phantom"
    ds.SeriesNumber = 1 if view == "PA" else 2
    ds.InstanceNumber = 1


def _describe(ds: Dataset, view: View, modality: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.Modality = modality
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.Manufacturer = "CoVariance phantom"
    ds.ManufacturerModelName = "Analytic chest"
    ds.SoftwareVersions = "1"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = view
    ds.PatientOrientation = ["L", "F"] if view == "PA" else ["P", "F"]
    ds.SeriesDescription = "PA" if view == "PA" else "LATERAL"
    ds.KVP = "120"
    ds.DistanceSourceToDetector = "1800"
    ds.ImageComments = "Synthetic phantom. Not a patient."
    ds.BurnedInAnnotation = "NO"


def _set_pixels(
    ds: Dataset, grey_HW: NDArray[np.uint16], bits: int, photometric: str, *, big_endian: bool
) -> None:
    if photometric == "MONOCHROME1":
        grey_HW = np.uint16((1 << bits) - 1) - grey_HW
    allocated = 8 if bits == 8 else 16
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = grey_HW.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = 0
    spacing = f"{_HEIGHT_MM / grey_HW.shape[0]:.6f}"
    ds.ImagerPixelSpacing = [spacing, spacing]
    ds.WindowCenter, ds.WindowWidth = str(1 << (bits - 1)), str(1 << bits)
    stored = grey_HW.astype("u1" if allocated == 8 else ">u2" if big_endian else "<u2").tobytes()
    ds.add_new("PixelData", "OB" if allocated == 8 else "OW", stored + b"\0" * (len(stored) % 2))


def _describe_digital(ds: Dataset, photometric: str) -> None:
    """Attributes that DX asks for (PS3.3 A.26)."""
    inverse = photometric == "MONOCHROME1"
    ds.SOPClassUID = uids.DIGITAL_XRAY_FOR_PRESENTATION
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.ImageLaterality = "U"
    ds.AnatomicRegionSequence = [_code("816094009", "SCT", "Chest")]
    view = ("272479007", "postero-anterior") if ds.ViewPosition == "PA" else ("399173006", "left lateral")
    ds.ViewCodeSequence = [_code(view[0], "SCT", view[1])]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.AcquisitionContextSequence = []
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.LossyImageCompression = "00"
    ds.DetectorType = "SCINTILLATOR"
    ds.DetectorConfiguration = "AREA"
    ds.DetectorID = "PHANTOM"
    ds.PositionerType = "NONE"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
