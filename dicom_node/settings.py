"""Settings of the node: one TOML file, overridden by files with secrets and by `COVARIANCE_*` variables.

`COVARIANCE_CONFIG` names the file; `COVARIANCE_NODE__PORT=11112` sets `[node] port`; `COVARIANCE_SECRETS`
names a directory whose file `database__url` sets `[database] url`.
This is the only file, with `worker.settings`, that looks at the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dicom_node import uids
from dicom_node.errors import ConfigurationError
from dicom_node.lanes import Lane
from dicom_node.secret_files import SecretFiles

CONFIGURATION_FILE = "COVARIANCE_CONFIG"
SECRETS_DIRECTORY = "COVARIANCE_SECRETS"  # pragma: allowlist secret (its name)
FAILPOINTS = "COVARIANCE_FAILPOINTS"

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
StationName = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Fingerprint = Annotated[
    str,
    Field(pattern=r"^([0-9A-Fa-f]{2}:?){32}$"),
    AfterValidator(lambda text: text.replace(":", "").lower()),
]
"""SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it or without the colons."""


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Caller(Section):
    """Who may send, bound to where it sends from. A title may have several entries; one must fit."""

    ae_title: AETitle
    """Calling AE title."""
    addresses: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks (CIDR) that it calls from. Empty: any."""
    certificate_sha256: Fingerprint | None = None
    """Fingerprint of the certificate that it must show; it is then refused on the plain port."""


class NodeSection(Section):
    """The listener."""

    ae_title: AETitle = "COVARIANCE"
    """Our AE title; a caller that asks for another is rejected (1,1,7)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: Port = 11112
    """TCP port; 0 takes a free one."""
    plain: bool = True
    """Whether this port is open: it is not encrypted. False leaves the port of [tls] only."""
    allowed_callers: tuple[AETitle, ...] = ()
    """Calling AE titles that may send, from anywhere. Without these and `callers`: anyone; else whoever is
    in neither is rejected (1,1,3)."""
    callers: tuple[Caller, ...] = ()
    """Calling AE titles that may send only from certain `addresses`, or only with the certificate whose
    fingerprint is `certificate_sha256`."""
    maximum_associations: int = Field(default=100, ge=1)
    """Associations at the same time; one more is rejected (2,3,2)."""
    maximum_connections: int = Field(default=512, ge=1)
    """Connections at the same time, those without an association included; one more is closed at once."""
    maximum_connections_per_address: int = Field(default=256, ge=1)
    """Connections from one address at the same time; one more is closed at once."""
    maximum_pdu_bytes: int = Field(default=262_144, ge=16_384, le=1_048_576)
    """Largest P-DATA PDU that we offer to receive."""
    maximum_object_bytes: int = Field(default=1_073_741_824, ge=1_048_576)
    """Largest data set that is kept; a longer one is answered A700."""
    network_timeout: Seconds = 60.0
    """Seconds without a complete PDU after which an association is aborted."""
    association_timeout: Seconds = 14_400.0
    """Seconds after which an association is aborted however busy it is; what was answered stays."""
    sop_classes: tuple[str, ...] = (
        uids.COMPUTED_RADIOGRAPHY,
        uids.DIGITAL_XRAY_FOR_PRESENTATION,
        uids.DIGITAL_XRAY_FOR_PROCESSING,
        uids.SECONDARY_CAPTURE,
    )
    """Storage SOP classes that may hold a radiograph."""
    set_aside_sop_classes: tuple[str, ...] = (uids.CT_IMAGE, uids.COMPREHENSIVE_3D_SR)
    """Classes accepted so that a router that sends whole studies does not fail; never scored."""

    @property
    def caller_titles(self) -> tuple[str, ...]:
        """Every title that may send, once; empty where anyone may."""
        titles = (*self.allowed_callers, *(caller.ae_title for caller in self.callers))
        return tuple(dict.fromkeys(title.strip() for title in titles))

    @model_validator(mode="after")
    def _a_title_is_bound_or_not(self) -> Self:
        free = {title.strip() for title in self.allowed_callers}
        if both := free.intersection(caller.ae_title.strip() for caller in self.callers):
            raise ValueError(f"{min(both)} is in allowed_callers and in callers; leave it in one of them")
        return self


class TlsSection(Section):
    """DICOM over TLS (PS3.15 B.12), on a port of its own; both sides show a certificate."""

    enabled: bool = False
    """Whether the port is open."""
    port: Port = 2762
    """TCP port; 0 takes a free one."""
    certificate: Path = Path("tls/node.pem")
    """Our certificate, and after it what leads to the authority (PEM). Changes of these files, of
    `crl`, of `allowed_callers` and of `callers` are taken up within seconds, or at once after SIGHUP."""
    key: Path = Path("tls/node.key")
    """Its private key (PEM), without a password; 0600."""
    authorities: Path = Path("tls/authorities.pem")
    """Certificates of those whose signature is accepted on a peer's certificate (PEM)."""
    crl: Path | None = None
    """Lists of revoked certificates (PEM, one after the other), each signed by one of `authorities`. Who is
    on one is refused, and so is everybody whose authority has no list here, or one that has ended. With a
    list of every authority, those between it and the peer are looked up, too. Unset: none is looked up."""
    handshake_timeout: Seconds = 10.0
    """Seconds that the handshake of a peer may take."""


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


class LaneRule(Section):
    """Which objects go into a lane: all that a rule names must fit, and the first rule that fits decides."""

    lane: Lane
    """`stat`, `routine` or `backfill`."""
    calling_ae: AETitle | None = None
    """Calling AE title of the sender."""
    station_ae: AETitle | None = None
    """StationAETitle (0008,0055) in the object."""
    station_name: StationName | None = None
    """StationName (0008,1010) in the object."""
    procedure_priority: Literal["STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW"] | None = None
    """RequestedProcedurePriority (0040,1003) in the object."""
    dimse_priority: Literal["HIGH", "MEDIUM", "LOW"] | None = None
    """Priority (0000,0700) of the C-STORE."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        asked = self.model_dump(exclude={"lane"}, exclude_none=True).values()
        if not asked or not all(value.strip() for value in asked):
            raise ValueError(
                "a rule needs a sender, a station or a priority; without one it fits every study"
            )
        return self


class LanesSection(Section):
    """Which studies are scored first. A study goes with the most urgent of its images."""

    rules: tuple[LaneRule, ...] = ()
    """Rules in order, with any of `calling_ae`, `station_ae`, `station_name`, `procedure_priority` and
    `dimse_priority`; what fits none is `routine`. `stat` goes first, then `routine`, then `backfill`."""
    backfill_share: float = Field(default=0.5, gt=0, le=1)
    """Share of worker.concurrency that backfill may have: one place at least, and never the last one but in a
    worker that has only one."""


class LogSection(Section):
    """Logs on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Smallest level that is written."""
    style: Literal["json", "console"] = "console"
    """`json` for a collector, `console` for people."""


class MetricsSection(Section):
    """An HTTP port of each process: `/metrics` for Prometheus, `/healthz` and `/readyz`. 0 opens none."""

    host: str = "127.0.0.1"
    """Address that the ports listen on. There is no login: keep them from who need not see them."""
    node_port: Port = 0
    """Of the node; 9464 is what the files in deploy/monitoring expect."""
    worker_port: Port = 0
    """Of the worker; 9465 there. Several workers of one machine each need their own."""
    deliver_port: Port = 0
    """Of the deliverer; 9466 there."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = [port for port in (self.node_port, self.worker_port, self.deliver_port) if port]
        if len(set(ports)) != len(ports):
            raise ValueError("two processes have the same port; give each its own")
        return self


class TracingSection(Section):
    """Traces by OpenTelemetry (extra `tracing`): one a study, over all processes."""

    endpoint: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Collector, as OTLP over HTTP (`http://127.0.0.1:4318/v1/traces`); empty: no traces."""


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
    tls: TlsSection = TlsSection()
    spool: SpoolSection = SpoolSection()
    assembly: AssemblySection = AssemblySection()
    queue: QueueSection = QueueSection()
    lanes: LanesSection = LanesSection()
    log: LogSection = LogSection()
    metrics: MetricsSection = MetricsSection()
    tracing: TracingSection = TracingSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, secrets, file."""
        path = os.environ.get(CONFIGURATION_FILE)
        if path and not Path(path).is_file():
            # pydantic-settings would take every default in silence.
            raise FileNotFoundError(f"there is no file {path}")
        file = TomlConfigSettingsSource(settings_cls, toml_file=path)
        secrets = os.environ.get(SECRETS_DIRECTORY)
        return (
            init_settings,
            env_settings,
            SecretFiles(settings_cls, Path(secrets) if secrets else None),
            file,
        )

    @model_validator(mode="after")
    def _a_port_is_open(self) -> Self:
        if not self.node.plain and not self.tls.enabled:
            raise ValueError("no port is open; set node.plain or tls.enabled")
        return self


Kind = TypeVar("Kind", bound=NodeSettings)


def read_settings(kind: type[Kind]) -> Kind:
    """Read the file and the environment; raise ConfigurationError with one sentence if they cannot work."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"The setting {where or 'file'} cannot be used: {first['msg']}.") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The settings file cannot be read: {error}.") from None


def settings_file() -> Path | None:
    """The file that this process reads its settings from."""
    path = os.environ.get(CONFIGURATION_FILE)
    return Path(path) if path else None


def use_file(path: Path) -> None:
    """Make this process, and those that it starts, read their settings from `path`.

    Raises:
        ConfigurationError: it is no file, or not for us to read.
    """
    try:
        there = path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a directory that may not be entered
        there = False
    if not there:
        raise ConfigurationError(f"There is no settings file {path} that can be read: name one.")
    os.environ[CONFIGURATION_FILE] = str(path.absolute())


def armed_failpoints() -> str:
    """Where processes are to fail on purpose, as `dicom_node.failpoints` reads it; empty but in tests."""
    return os.environ.get(FAILPOINTS, "")


def child_environment(**overrides: str) -> dict[str, str]:
    """Return the environment for a child process: ours, with settings laid over it.

    A name is the setting's path in capitals: `NODE__PORT="0"` sets `[node] port`.
    """
    return {**os.environ, **{f"COVARIANCE_{name}": value for name, value in overrides.items()}}
