"""Settings of the worker and the deliverer, on top of those of the node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from dicom_node.settings import AETitle, NodeSettings, Port, Seconds, Section, read_settings
from dicom_node.tls import ClientTls

EngineName = Literal["openvino", "tensorrt", "torch"]

DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "densenet121-covid"


class DatabaseSection(Section):
    """The ledger: what was done with every study, and the audit trail."""

    url: str = "sqlite:///covariance-data/ledger.sqlite3"
    """SQLAlchemy URL: `sqlite:///path` or `postgresql+psycopg://user@host/name`."""
    patient_hash_key: SecretStr = SecretStr("covariance-development-key")
    """Key of the HMAC that stands for a patient in the audit; set your own in production."""


class WorkerSection(Section):
    """How studies are scored."""

    bundle: Path = DEFAULT_BUNDLE
    """Directory of the model bundle (`model.onnx`, `manifest.json`, golden cases)."""
    bundle_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the bundle's `manifest.json`, which names the digests of all its other files; empty: any."""
    models: Path = Path("covariance-data/models")
    """Directory of the bundles that `covariance model` installs. The one that it has activated scores, unless
    `bundle` names another."""
    shadow_bundle: Path | None = None
    """A second bundle that scores beside the first and writes nothing back; `covariance shadow` compares.
    It costs the time of the engine once more. Unset: none."""
    engine: Literal["auto", EngineName] = "auto"
    """Inference engine. `auto`: TensorRT or torch where they and a GPU are, else OpenVINO on the CPU."""
    fallback: Literal["none", "cpu"] = "none"
    """What to do at the start without the engine's GPU: end, or score with OpenVINO, which results say."""
    engine_precision: Literal["native", "int8"] = "native"
    """`int8`: the eight-bit network that `training quantise` has put into the bundle; `openvino` only."""
    engine_threads: int = Field(default=0, ge=0)
    """Threads of the CPU engine; 0 leaves it to the engine."""
    engine_pinning: bool = False
    """Whether threads of the CPU engine keep their cores; only for a machine that does nothing else."""
    engine_cache: Path = Path("covariance-data/engine-cache")
    """Directory of compiled models. They are code: it must belong to the worker's user alone."""
    max_batch: int = Field(default=32, ge=1, le=32)
    """Films that a GPU engine takes at once at most, rounded up to 1, 2, 4, 8, 16 or 32. Less saves memory of
    the GPU."""
    max_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    """Milliseconds that a film waits at most for others, while the GPU has nothing to do."""
    concurrency: int = Field(default=2, ge=1)
    """Studies scored at the same time by one worker process."""
    decoders: int = Field(default=2, ge=1)
    """Guarded child processes that read and decode files."""
    decoder_memory_bytes: int = Field(default=1_500_000_000, ge=200_000_000)
    """Memory that a decoder child may take before the image is quarantined."""
    decoder_timeout: Seconds = 30.0
    """Seconds that the decoding of one image may take."""
    lease: Seconds = 20.0
    """Seconds without a sign of life after which a worker's claim is void and another may take the study."""
    maximum_seconds: Seconds = 600.0
    """Seconds after which a study's claim is given up although its worker lives: it hangs."""
    maximum_attempts: int = Field(default=3, ge=1)
    """Claims of one job that end in silence (a worker died) before it is quarantined."""

    @model_validator(mode="after")
    def _eight_bits_are_of_the_cpu(self) -> Self:
        if self.engine_precision == "int8" and self.engine != "openvino":
            raise ValueError('engine_precision "int8" needs engine "openvino"')
        return self


class EligibilitySection(Section):
    """Which images are analysed. Everything else ends as by-policy with its reason."""

    minimum_age_years: float = Field(default=18.0, ge=0)
    """Patients younger than this are not analysed; 0 analyses every age."""
    minimum_pixels: int = Field(default=256, ge=32)
    """Shortest side of an image that is analysed, in pixels."""
    indeterminate: Literal["score", "skip"] = "score"
    """What to do when the header leaves body part, view or age open. The report says which."""
    secondary_capture: bool = False
    """Whether Secondary Capture images are analysed (digitised films, some mobile units)."""


class ReportSection(Section):
    """What is written back."""

    not_analysed: bool = True
    """Whether an ineligible study gets an SR that says why it was not analysed."""
    manufacturer: str = "CoVariance"
    """Manufacturer in our objects."""
    series_number: int = Field(default=9001, ge=1)
    """SeriesNumber of the SR; the heatmaps take the next one."""
    secondary_capture_modality: str = Field(default="OT", max_length=16)
    """Modality of the heatmap series."""
    time_zone: ZoneInfo | None = None
    """Where the hospital is, as `Europe/Berlin`: the times of results whose film does not state its
    TimezoneOffsetFromUTC. Unset: this machine's, which is UTC in containers."""


class DestinationTls(Section):
    """How a destination is reached over TLS. Its files are read for every association."""

    authorities: Path
    """Certificates of those whose signature is accepted on the certificate of the destination (PEM)."""
    certificate: Path | None = None
    """Our certificate, where the destination asks for one (PEM)."""
    key: Path | None = None
    """Its private key (PEM), where it is not in the same file."""
    check_name: bool = True
    """Whether the certificate must be that of `server_name`."""
    server_name: str | None = None
    """Name in the certificate of the destination, where it is not `host`."""

    def as_client(self) -> ClientTls:
        """The same for the wire."""
        return ClientTls(**dict(self))


class Destination(Section):
    """A PACS that results are sent to."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,32}$")
    """Short name in the ledger, `status` and metrics."""
    ae_title: AETitle
    """AE title of the destination."""
    host: str
    """Host name or address."""
    port: Port
    """TCP port."""
    verify: Literal["commitment", "find", "none"] = "commitment"
    """How a stored object is proven: storage commitment, a C-FIND at image level, or not at all."""
    commitment_timeout: Seconds = 60.0
    """Seconds after which an unanswered commitment request is made again; doubled each time, to an hour."""
    rejection_notes: bool = False
    """Whether it takes rejection notes (Key Object Selections after IHE IOCM) for results of a recalled
    model; else it gets an SR that says that they are withdrawn."""
    tls: DestinationTls | None = None
    """Reach it over TLS. `server_name` is the name in its certificate, where that is not `host`."""


class DeliverySection(Section):
    """How results are sent, and tried again."""

    poll_seconds: Seconds = 0.1
    """Pause between two looks at the ledger."""
    gather_seconds: float = Field(default=0.5, ge=0)
    """Pause after something was sent: under load one association then carries many objects."""
    batch: int = Field(default=100, ge=1)
    """Objects over one association."""
    backoff_first: Seconds = 1.0
    """Seconds before the second try; doubled for each further one, with jitter."""
    backoff_cap: float = Field(default=600.0, gt=0, le=3600)
    """Longest pause in seconds between two tries, up to an hour. There is no last try."""
    permanent_attempts: int = Field(default=15, ge=1)
    """Times in a row that a destination may refuse an object before it is set aside. With the pauses above
    that is most of an hour: an archive whose disk is full or whose database starts says C000 or 0110, too."""
    reconcile_seconds: Seconds = 2.0
    """Pause between two looks for studies that no message announces."""
    timeout: Seconds = 30.0
    """Seconds to wait for an association, a response or a write."""


class AuditSection(Section):
    """The audit trail elsewhere: checkpoints of its end, and its events as DICOM audit messages."""

    checkpoints: str = ""
    """File that the end of the audit trail is noted in, best on a disk of another machine; empty: none."""
    checkpoint_seconds: Seconds = 300.0
    """Pause between two checkpoints. None is written while nothing happens."""
    syslog_host: str = ""
    """Syslog server that gets DICOM audit messages (PS3.15 A.5), only over TLS (A.6); empty: none."""
    syslog_port: Port = 6514
    """Its TCP port."""
    syslog_authorities: str = ""
    """PEM file of the authorities that sign its certificate; empty: those that the system trusts."""
    syslog_certificate: str = ""
    """PEM file of our own certificate and its chain, when the server asks for one."""
    syslog_key: str = ""
    """PEM file of its key; empty: it is in the same file."""
    syslog_timeout: Seconds = 10.0
    """Seconds to wait for the server at each step."""


class RetentionSection(Section):
    """When received films leave the spool. Never because it is full: the node then answers A700."""

    enabled: bool = False
    """Whether the deliverer purges by itself; else films stay until `covariance purge --yes`."""
    keep_days: float = Field(default=30.0, ge=0)
    """Days since the last image of a study came before its films may go, all results proven."""
    quarantined: bool = False
    """Whether quarantined films go as well; they cannot be tried again after."""


class HeartbeatSection(Section):
    """A phantom that goes the whole way on a schedule. By default it ends in the ledger, not at the PACS."""

    every_minutes: float = Field(default=0.0, ge=0, le=1440)
    """Minutes between two phantoms; 0 sends none."""
    calling_ae: AETitle = "COVARIANCE-BEAT"
    """AE title that it calls as; the node must let it in."""
    host: str = ""
    """Where our node is, as seen from the deliverer; empty: node.host."""
    port: Port = 0
    """Its port; 0: node.port, or tls.port with `tls`."""
    tls: DestinationTls | None = None
    """Call over TLS, where the plain port is closed."""
    deliver: bool = False
    """Whether its results are sent to the destinations as well."""
    keep_hours: float = Field(default=24.0, gt=0)
    """Hours that its film stays in the spool. Its rows stay in the ledger."""


class Settings(NodeSettings):
    """Everything, checked."""

    model_config = SettingsConfigDict(extra="forbid")

    database: DatabaseSection = DatabaseSection()
    worker: WorkerSection = WorkerSection()
    eligibility: EligibilitySection = EligibilitySection()
    report: ReportSection = ReportSection()
    delivery: DeliverySection = DeliverySection()
    audit: AuditSection = AuditSection()
    retention: RetentionSection = RetentionSection()
    heartbeat: HeartbeatSection = HeartbeatSection()
    destinations: tuple[Destination, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name; give each its own")
        return self


def load_settings() -> Settings:
    """Read everything; raise ConfigurationError with one sentence if it cannot work."""
    return read_settings(Settings)
