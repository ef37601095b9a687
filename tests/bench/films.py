"""Films for the benchmark: one phantom's pixels under as many UIDs as are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dicom_node.uids import derive_uid
from worker.phantom import phantom_dataset


def write_studies(folder: Path, studies: int, *, images: int = 1, salt: str) -> list[list[Path]]:
    """Write 10 MB CRs (2500 x 2048, 12 bits in 16); one list of files a study."""
    folder.mkdir(parents=True, exist_ok=True)
    template = phantom_dataset(7, rows=2500, columns=2048)
    return [list(_images(template, folder, study, images, salt)) for study in range(studies)]


def _images(template, folder: Path, study: int, images: int, salt: str) -> Iterator[Path]:
    for image in range(images):
        template.StudyInstanceUID = derive_uid(salt, str(study))
        template.SeriesInstanceUID = derive_uid(salt, str(study), "series")
        template.SOPInstanceUID = derive_uid(salt, str(study), str(image))
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.PatientID = f"PHANTOM-{salt}-{study}"
        path = folder / f"{salt}-{study}-{image}.dcm"
        template.save_as(path, enforce_file_format=True)
        yield path
