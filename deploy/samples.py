"""What the demo sends: phantoms as several modalities would make them, or files of the user's own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite

from deploy.send import find_items
from deploy.wrap import wrap_picture
from dicom_node.errors import CovarianceError, Permanent
from dicom_node.store_scu import SendItem
from worker.phantom import phantom_dataset

_MONOCHROME1 = {"modality": "DX", "photometric": "MONOCHROME1", "bits": 14}
_PHANTOMS: Sequence[tuple[str, int, Sequence[dict[str, Any]]]] = (
    ("PA", 1, ({},)),
    ("PA opacities", 2, ({"opacity": 1.0},)),
    ("PA + lateral", 3, ({}, {"view": "LL"})),
    ("lateral only", 4, ({"view": "LL"},)),
    ("DX inverted", 5, (_MONOCHROME1,)),
    ("DX opacities", 6, ({"opacity": 0.7, "modality": "DX"},)),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A study to send."""

    label: str
    study_instance_uid: str
    items: tuple[SendItem, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What there is to send."""

    studies: tuple[Sample, ...]
    left_out: int = 0
    """Files that are no DICOM, PNG or JPEG that can be read."""


def phantom_samples(folder: Path) -> Samples:
    """Make phantom studies, new ones each time, as files in `folder`."""
    # Another patient each time: a PACS that saw an earlier demo must not take this one for the same.
    salt = str(time.time_ns())
    samples = []
    for label, seed, views in _PHANTOMS:
        films = [phantom_dataset(seed, salt=salt, **view) for view in views]
        items = tuple(_write(film, folder) for film in films)
        samples.append(Sample(label=label, study_instance_uid=films[0].StudyInstanceUID, items=items))
    return Samples(studies=tuple(samples))


def file_samples(path: Path, folder: Path) -> Samples:
    """Group the DICOM files at `path` by study; pictures are wrapped as CR into `folder`.

    Raises:
        CovarianceError: there is nothing to send.
    """
    studies: dict[str, list[SendItem]] = defaultdict(list)
    left_out = 0
    for found in find_items([path]):
        item = found if isinstance(found, SendItem) else _wrapped(found, folder)
        uid = _study_of(item) if item else None
        if item and uid:
            studies[uid].append(item)
        else:
            left_out += 1
    if not studies:
        raise CovarianceError(f"Nothing at {path} is a DICOM file, a PNG or a JPEG.")
    samples = tuple(
        Sample(label=f"…{uid[-12:]}", study_instance_uid=uid, items=tuple(items))
        for uid, items in studies.items()
    )
    return Samples(studies=samples, left_out=left_out)


def _study_of(item: SendItem) -> str | None:
    header = dcmread(item.path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    return str(header.get("StudyInstanceUID") or "") or None


def _wrapped(path: Path, folder: Path) -> SendItem | None:
    try:
        return _write(wrap_picture(path), folder)
    except Permanent:
        return None


def _write(ds: Dataset, folder: Path) -> SendItem:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    dcmwrite(path, ds, enforce_file_format=True)
    return SendItem(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
        path=path,
    )
