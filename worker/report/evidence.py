"""What a document refers to, by series (PS3.3 C.17.2.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from pydicom.dataset import Dataset


class Cited(Protocol):
    """An object that a document refers to."""

    @property
    def sop_class_uid(self) -> str: ...  # noqa: D102
    @property
    def sop_instance_uid(self) -> str: ...  # noqa: D102
    @property
    def series_instance_uid(self) -> str: ...  # noqa: D102


def evidence(study_instance_uid: str, cited: Iterable[Cited]) -> Dataset:
    """The item for CurrentRequestedProcedureEvidenceSequence or PredecessorDocumentsSequence."""
    series: dict[str, list[Dataset]] = defaultdict(list)
    for one in cited:
        reference = Dataset()
        reference.ReferencedSOPClassUID = one.sop_class_uid
        reference.ReferencedSOPInstanceUID = one.sop_instance_uid
        series[one.series_instance_uid].append(reference)
    found = Dataset()
    found.StudyInstanceUID = study_instance_uid
    found.ReferencedSeriesSequence = []
    for uid, references in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = references
        found.ReferencedSeriesSequence.append(item)
    return found
