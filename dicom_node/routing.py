"""Which lane an object belongs in, by its sender, its station, and how urgent it is said to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dicom_node.lanes import Lane
from dicom_node.settings import LaneRule

STATION_AE_TITLE = 0x0008_0055
STATION_NAME = 0x0008_1010
REQUESTED_PROCEDURE_PRIORITY = 0x0040_1003

_DIMSE_PRIORITIES = {"LOW": 2, "MEDIUM": 0, "HIGH": 1}  # (0000,0700), PS3.7 9.3.1.1


class Router:
    """The rules of the settings. Pure: the same object has the same lane at any time."""

    def __init__(self, rules: Sequence[LaneRule] = ()) -> None:
        self._rules = [(rule, _values(rule)) for rule in rules]
        self.tags = frozenset(tag for _, values in self._rules for tag in values)
        """The elements of a data set that a rule looks at; only these are read."""

    def lane(self, *, calling_ae: str, dimse_priority: int | None, values: Mapping[int, str]) -> Lane:
        """The lane of the first rule of which all fits; routine where none does."""
        for rule, wanted in self._rules:
            if rule.calling_ae is not None and rule.calling_ae.strip() != calling_ae.strip():
                continue
            asked = rule.dimse_priority
            if asked is not None and _DIMSE_PRIORITIES[asked] != dimse_priority:
                continue
            if all(values.get(tag) == value for tag, value in wanted.items()):
                return rule.lane
        return Lane.ROUTINE


def _values(rule: LaneRule) -> dict[int, str]:
    wanted = {
        STATION_AE_TITLE: rule.station_ae,
        STATION_NAME: rule.station_name,
        REQUESTED_PROCEDURE_PRIORITY: rule.procedure_priority,
    }
    return {tag: value.strip() for tag, value in wanted.items() if value is not None}
