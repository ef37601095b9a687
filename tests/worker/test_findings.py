"""What makes a result another result."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.findings import ModelIdentity

MODEL = ModelIdentity(
    name="densenet121-covid",
    version="1.0.0",
    sha256="a" * 64,
    recipe="stretch-320",
    engine="openvino 2026.4.1",
    precision="f32",
    threshold=0.5,
    operating_point="youden@dev",
    temperature=1.0,
)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "b" * 64},
        {"version": "1.0.1"},
        {"recipe": "stretch-384"},
        {"threshold": 0.6},
        {"temperature": 2.0},
        {"operating_point": "recall@dev"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_configuration(change):
    """Whatever decides on a result makes another configuration and another device."""
    other = replace(MODEL, **change)
    assert other.configuration != MODEL.configuration
    assert other.device_uid != MODEL.device_uid


def test_another_machine_is_the_same_configuration():
    """Where a result was computed makes no difference to what it is."""
    other = replace(MODEL, engine="openvino 2027.1.0", precision="bf16")
    assert other.configuration == MODEL.configuration
