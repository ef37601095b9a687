"""Which lane an object, and with it a study, goes into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.errors import ConfigurationError
from dicom_node.file_meta import Head, Provenance, read_head, write_head
from dicom_node.header import read_values
from dicom_node.lanes import Lane, most_urgent
from dicom_node.routing import REQUESTED_PROCEDURE_PRIORITY, STATION_NAME, Router
from dicom_node.settings import CONFIGURATION_FILE, LaneRule, NodeSettings, read_settings
from tests.dicom_node.build import Listening, encoded, film, store_request


def test_a_study_goes_with_the_most_urgent_of_its_images() -> None:
    """In whatever order they came; routine where nothing is known."""
    assert most_urgent([Lane.BACKFILL, Lane.STAT, Lane.ROUTINE]) is Lane.STAT
    assert most_urgent([Lane.BACKFILL, Lane.BACKFILL]) is Lane.BACKFILL
    assert most_urgent([]) is Lane.ROUTINE


@pytest.mark.parametrize(
    ("rule", "lane"),
    [
        pytest.param({"calling_ae": "ED1"}, Lane.STAT, id="sender"),
        pytest.param({"calling_ae": "ED2"}, Lane.ROUTINE, id="another sender"),
        pytest.param({"station_name": "ER_DX_1"}, Lane.STAT, id="station"),
        pytest.param({"station_name": "WARD"}, Lane.ROUTINE, id="another station"),
        pytest.param({"station_ae": "ERDX"}, Lane.STAT, id="station AE title"),
        pytest.param({"procedure_priority": "STAT"}, Lane.STAT, id="priority of the procedure"),
        pytest.param({"procedure_priority": "LOW"}, Lane.ROUTINE, id="another priority"),
        pytest.param({"dimse_priority": "HIGH"}, Lane.STAT, id="priority of the C-STORE"),
        pytest.param({"dimse_priority": "MEDIUM"}, Lane.ROUTINE, id="another priority of the C-STORE"),
        pytest.param({"calling_ae": "ED1", "procedure_priority": "STAT"}, Lane.STAT, id="both fit"),
        pytest.param({"calling_ae": "ED1", "procedure_priority": "LOW"}, Lane.ROUTINE, id="one of two fits"),
    ],
)
def test_a_rule_fits_what_it_names(
    rule: dict[str, str], lane: Lane, listen: Callable[..., Listening]
) -> None:
    """An object that was sent over the wire lies in the spool with the lane of its rule."""
    node = listen(lanes={"rules": [{"lane": "stat", **rule}]})
    sent = film(StationName="ER_DX_1", StationAETitle="ERDX", RequestedProcedurePriority="STAT")
    command = store_request(sent)
    command = type(command)({**command._elements, 0x0700: 1})  # HIGH
    with node.requestor(calling="ED1") as association:
        (context, *_) = association._terms.contexts.values()
        assert association.ask(context, command, encoded(sent)) == 0x0000
    (announced,) = node.filed
    (spooled,) = node.spool.instances(sent.StudyInstanceUID)
    assert (announced.lane, spooled.lane) == (lane, lane)


def test_the_first_rule_that_fits_decides() -> None:
    """An exception stands before the rule that it is an exception of."""
    router = Router(
        [
            LaneRule(lane=Lane.ROUTINE, calling_ae="ARCHIVE", procedure_priority="HIGH"),
            LaneRule(lane=Lane.BACKFILL, calling_ae="ARCHIVE"),
        ]
    )
    high = {REQUESTED_PROCEDURE_PRIORITY: "HIGH"}
    assert router.lane(calling_ae="ARCHIVE ", dimse_priority=None, values=high) is Lane.ROUTINE
    assert router.lane(calling_ae="ARCHIVE", dimse_priority=None, values={}) is Lane.BACKFILL
    assert router.lane(calling_ae="CT1", dimse_priority=None, values={}) is Lane.ROUTINE


@pytest.mark.parametrize("syntax", uids.TRANSFER_SYNTAXES)
def test_values_are_read_in_every_syntax(syntax: str) -> None:
    """Those before the series and those behind it."""
    content = encoded(film(transfer_syntax=syntax, StationName="ER1", RequestedProcedurePriority="STAT"))
    tags = (STATION_NAME, REQUESTED_PROCEDURE_PRIORITY)
    values = read_values(lambda start, count: content[start : start + count], len(content), syntax, tags)
    assert values == {STATION_NAME: "ER1", REQUESTED_PROCEDURE_PRIORITY: "STAT"}


def test_what_cannot_be_read_fits_no_rule() -> None:
    """A data set that breaks off behind the series is still an object; only its priority is not known."""
    content = encoded(film(StationName="ER1", RequestedProcedurePriority="STAT"))
    content = content[: content.index(b"\x20\x00\x0e\x00") + 20]
    tags = (STATION_NAME, REQUESTED_PROCEDURE_PRIORITY)
    syntax = uids.EXPLICIT_VR_LITTLE_ENDIAN
    values = read_values(lambda start, count: content[start : start + count], len(content), syntax, tags)
    assert values == {STATION_NAME: "ER1"}


def test_a_head_without_a_lane_is_that_of_earlier_versions() -> None:
    """Routine adds nothing to a head, and a head without a lane is routine."""

    def head(lane: Lane) -> Head:
        provenance = Provenance(series="1.2.3", address="::1", received_at="2026-01-01T00:00:00", lane=lane)
        return Head(
            sop_class_uid="1.2",
            sop_instance_uid="1.2.4",
            transfer_syntax_uid="1.2.840.10008.1.2",
            calling_ae="A",
            called_ae="B",
            provenance=provenance,
        )

    assert b"lane" not in write_head(head(Lane.ROUTINE))
    assert read_head(write_head(head(Lane.ROUTINE))).provenance.lane == Lane.ROUTINE
    assert read_head(write_head(head(Lane.BACKFILL))).provenance.lane == Lane.BACKFILL


def test_a_head_of_a_later_version_is_not_rotten() -> None:
    """After a rollback: what it tells more is passed over, a lane that is not known is routine."""
    provenance = Provenance(series="1.2.3", address="::1", received_at="2026-01-01T00:00:00", lane="nightly")
    later = write_head(
        Head(
            sop_class_uid="1.2",
            sop_instance_uid="1.2.4",
            transfer_syntax_uid="1.2.840.10008.1.2",
            calling_ae="A",
            called_ae="B",
            provenance=provenance,
        )
    ).replace(b'"lane":"nightly"', b'"ward":"nightly"')
    assert read_head(later).provenance == replace(provenance, lane=Lane.ROUTINE)
    unknown = later.replace(b'"ward":', b'"lane":')
    assert read_head(unknown).provenance == replace(provenance, lane=Lane.ROUTINE)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[lanes]\nrules = [{ lane = "stat", station_name = " " }]', "fits every study"),
        ('[lanes]\nrules = [{ lane = "stat" }]', "fits every study"),
        ('[lanes]\nrules = [{ lane = "urgent", calling_ae = "ED1" }]', "'stat', 'routine' or 'backfill'"),
        ('[lanes]\nrules = [{ lane = "stat", sender = "ED1" }]', "lanes.rules.0.sender"),
        ('[lanes]\nrules = [{ lane = "stat", station_name = "a name that is too long" }]', "at most 16"),
        ('[lanes]\nrules = [{ lane = "stat", procedure_priority = "URGENT" }]', "'STAT', 'HIGH'"),
        ("[lanes]\nbackfill_share = 0", "lanes.backfill_share"),
        ("[lanes]\nbackfill_share = 1.5", "lanes.backfill_share"),
    ],
)
def test_a_bad_rule_is_one_sentence(
    text: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which setting cannot be used, and why."""
    file = tmp_path / "covariance.toml"
    file.write_text(text)
    monkeypatch.setenv(CONFIGURATION_FILE, str(file))
    with pytest.raises(ConfigurationError) as refused:
        read_settings(NodeSettings)
    said = str(refused.value)
    assert names in said
    assert "\n" not in said
    assert said.endswith(".")


def test_a_rule_of_nulls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable can say null, and a rule of nulls would make every study urgent."""
    monkeypatch.setenv("COVARIANCE_LANES__RULES", '[{"lane": "stat", "calling_ae": null}]')
    with pytest.raises(ConfigurationError, match="fits every study"):
        read_settings(NodeSettings)
