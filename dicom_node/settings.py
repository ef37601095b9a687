"""Settings of the node: one TOML file, overridden by `COVARIANCE_*` variables.

`COVARIANCE_CONFIG` names the file; `COVARIANCE_NODE__PORT=11112` sets `[node] port`.
This is the only file, with `worker.settings`, that looks at the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dicom_node import uids

CONFIGURATION_FILE = "COVARIANCE_CONFIG"

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NodeSection(Section):
    """The listener."""

    ae_title: AETitle = "COVARIANCE"
    """Our AE title; a caller that asks for another is rejected (1,1,7)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: Port = 11112
    """TCP port; 0 takes a free one."""
    allowed_callers: tuple[AETitle, ...] = ()
    """Calling AE titles that may send. Empty: anyone; else everyone not listed is rejected (1,1,3)."""
    maximum_associations: int = Field(default=100, ge=1)
    """Associations at the same time; one more is rejected (2,3,2)."""
    maximum_pdu_bytes: int = Field(default=262_144, ge=16_384, le=1_048_576)
    """Largest P-DATA PDU that we offer to receive."""
    maximum_object_bytes: int = Field(default=1_073_741_824, ge=1_048_576)
    """Largest data set that is kept; a longer one is answered A700."""
    network_timeout: Seconds = 60.0
    """Seconds without a complete PDU after which an association is aborted."""
    sop_classes: tuple[str, ...] = (
        uids.COMPUTED_RADIOGRAPHY,
        uids.DIGITAL_XRAY_FOR_PRESENTATION,
        uids.DIGITAL_XRAY_FOR_PROCESSING,
        uids.SECONDARY_CAPTURE,
    )
    """Storage SOP classes that may hold a radiograph."""
    set_aside_sop_classes: tuple[str, ...] = (uids.CT_IMAGE, uids.COMPREHENSIVE_3D_SR)
    """Classes accepted so that a router that sends whole studies does not fail; never scored."""


class SpoolSection(Section):
    """The durable store of what came in and of what is to go out."""

    path: Path = Path("covariance-data/spool")
    """Directory; one file system for all of it, because a rename must be atomic."""
    minimum_free_bytes: int = Field(default=1_000_000_000, ge=0)
    """Below this much free space every C-STORE is answered A700, and nothing is lost."""


class AssemblySection(Section):
    """When a study is taken as complete."""

    quiet_seconds: Seconds = 5.0
    """Seconds without a new image after which a study is released."""
    cap_seconds: Seconds = 120.0
    """Seconds after the first image at which a study is released in any case."""


class QueueSection(Section):
    """The broker: a doorbell. It holds keys, never pixels or names, and may be emptied at any time."""

    url: str = "redis://127.0.0.1:6379/0"
    """Redis or Valkey, as a URL (`redis://`, `rediss://`, `redis+socket:///path?virtual_host=0`)."""
    prefix: str = "covariance:"
    """Prefix of every key, so that a broker may be shared."""
    embedded_path: Path = Path("covariance-data/valkey")
    """Directory of the broker that `covariance up` starts when `url` is left at its default."""


class LogSection(Section):
    """Logs on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Smallest level that is written."""
    style: Literal["json", "console"] = "console"
    """`json` for a collector, `console` for people."""


class NodeSettings(BaseSettings):
    """All that the node needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="COVARIANCE_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        validate_default=True,
    )

    node: NodeSection = NodeSection()
    spool: SpoolSection = SpoolSection()
    assembly: AssemblySection = AssemblySection()
    queue: QueueSection = QueueSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, file."""
        path = os.environ.get(CONFIGURATION_FILE)
        if path and not Path(path).is_file():
            # pydantic-settings would take every default in silence.
            raise FileNotFoundError(f"there is no file {path}")
        file = TomlConfigSettingsSource(settings_cls, toml_file=path)
        return init_settings, env_settings, file


def use_file(path: Path) -> None:
    """Make this process, and those that it starts, read their settings from `path`."""
    os.environ[CONFIGURATION_FILE] = str(path.absolute())


def child_environment(**overrides: str) -> dict[str, str]:
    """Return the environment for a child process: ours, with settings laid over it.

    A name is the setting's path in capitals: `NODE__PORT="0"` sets `[node] port`.
    """
    return {**os.environ, **{f"COVARIANCE_{name}": value for name, value in overrides.items()}}
