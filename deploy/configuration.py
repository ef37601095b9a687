"""Settings as text, and whether what they point to is there."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape

from deploy import broker
from dicom_node import failpoints
from dicom_node.dispatch import Dispatcher
from dicom_node.errors import ConfigurationError, CovarianceError, Retryable
from dicom_node.logs import configure_logs
from dicom_node.revocation import read_lists
from dicom_node.settings import LanesSection, NodeSection, TlsSection
from dicom_node.store_scu import Peer, echo
from dicom_node.tls import server_context
from worker.ledger.store import make_engine, transaction
from worker.model_store import open_bundle_in_use
from worker.settings import (
    DEFAULT_BUNDLE,
    DatabaseSection,
    Destination,
    HeartbeatSection,
    ReportSection,
    Settings,
    WorkerSection,
    load_settings,
)
from worker.syslog import SyslogServer

_PASSWORD = re.compile(r"(?<=://)([^:@/?#]*):.*@", re.DOTALL)
"""Up to the last @: whoever wrote the URL may not have escaped the password, whatever is in it."""
_SECRET_IN_QUERY = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
_WIDTH = 100
_HEAD = """\
# Settings of CoVariance, each at its default: keep the lines that you change.
# Words stand after `# `; a setting after `#` is switched off.
# `covariance --config FILE ...` or COVARIANCE_CONFIG=FILE reads this file; a variable goes before it
# (COVARIANCE_NODE__PORT=104 is `port` under [node]). Relative paths start where the command is given.
# `covariance config check FILE` says whether it can work. Written by `covariance config example`.
"""
_EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    NodeSection: {"callers": [{"ae_title": "CT1", "addresses": ["192.0.2.0/24"]}]},
    LanesSection: {
        "rules": [{"lane": "stat", "calling_ae": "ED1"}, {"lane": "backfill", "calling_ae": "ARCHIVE"}]
    },
    WorkerSection: {"shadow_bundle": "bundles/next-model"},
    ReportSection: {"time_zone": "Europe/Berlin"},
    TlsSection: {"crl": "tls/revoked.pem"},
    HeartbeatSection: {"tls": {"authorities": "tls/node.pem", "certificate": "tls/beat.pem"}},
    Destination: {
        "name": "pacs",
        "ae_title": "PACS",
        "host": "192.0.2.10",
        "port": 104,
        "tls": {"authorities": "tls/pacs.pem", "certificate": "tls/node.pem", "key": "tls/node.key"},
    },
}
"""Values for what has no default, or one that shows nothing."""


def example_file() -> str:
    """Every setting with its description and its default, as TOML."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            head = f"# {type(field.default).__doc__}\n[{name}]"
            parts.append("\n".join([head, *_lines(type(field.default))]))
    destination = "\n".join(_lines(Destination, live=False))
    parts.append(
        f"# One table for each PACS that results are sent to; without one, results stay here.\n"
        f"#[[destinations]]\n{destination}"
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _lines(section: type[BaseModel], *, live: bool = True) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield from textwrap.wrap(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# ")
        shown = _EXAMPLES.get(section, {}).get(name)
        default = field.default if shown is None else shown
        if default == DEFAULT_BUNDLE:
            yield f"#{name} = {_toml('bundles/your-model')}  # else the one that comes with CoVariance"
        elif isinstance(default, SecretStr):
            yield f"#{name} = {_toml('a secret of your own')}"
        else:
            yield f"{'#' if shown is not None or not live else ''}{name} = {_toml(default)}"


def effective(settings: Settings) -> str:
    """The settings in force as TOML; secrets and passwords in URLs are hidden."""
    parts = []
    for name, section in settings:
        if isinstance(section, BaseModel):
            parts.append(_table(f"[{name}]", section))
        else:
            parts.extend(_table(f"[[{name}]]", one) for one in section)
    return "\n\n".join(parts) + "\n"


def _table(head: str, section: BaseModel) -> str:
    return "\n".join([head, *(f"{name} = {_toml(value)}" for name, value in section if value is not None)])


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{name} = {_toml(one)}' for name, one in value.items() if one is not None)} }}"
        )
    if isinstance(value, tuple | list):
        text = f"[{', '.join(_toml(one) for one in value)}]"
        return (
            text if len(text) <= _WIDTH else "\n".join(["[", *(f"    {_toml(one)}," for one in value), "]"])
        )
    if isinstance(value, Path | SecretStr | IPv4Network | IPv6Network | ZoneInfo):
        value = str(value)
    if isinstance(value, str):
        value = without_secrets(value)
    # JSON's strings, numbers and booleans are TOML's, too.
    return json.dumps(value, ensure_ascii=False)


def without_secrets(url: str) -> str:
    """A URL as it may be shown."""
    # By hand: SQLAlchemy and urllib read a broken URL in different ways, and this command helps to mend one.
    return _SECRET_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url)) if "://" in url else url


def check_settings(*, connect: bool) -> int:
    """Check everything, print a line for each, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    configure_logs(level="ERROR")
    settings = load_settings()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("model bundle", lambda: _bundle(settings)),
        ("tls", lambda: _tls(settings)),
        ("spool", lambda: _place(settings.spool.path, "spool.path")),
        ("database", lambda: _database(settings, connect=connect)),
        ("broker", lambda: _broker(settings, connect=connect)),
    ]
    if settings.audit.syslog_host:
        checks.append(("syslog", lambda: _syslog(settings)))
    checks += [
        (f"destination {one.name}", partial(_destination, settings, one, connect=connect))
        for one in settings.destinations
    ]
    code = 0
    for name, probe in checks:
        try:
            console.print(f"[green]✓[/] {name:<14} {escape(probe())}")
        except CovarianceError as error:
            console.print(f"[red]✗[/] {name:<14} {escape(str(error))}")
            code = max(code, 1 if isinstance(error, Retryable) else 2)
    for warning in warnings_of(settings):
        console.print(f"[yellow]![/] {escape(warning)}")
    return code


def _bundle(settings: Settings) -> str:
    bundle = open_bundle_in_use(settings.worker)
    bundle.network_path(settings.worker.engine_precision)
    manifest, point = bundle.manifest, bundle.manifest.operating_point
    shown = f"{manifest.name} {manifest.version}, threshold {point.probability:.3f} ({point.name})"
    return f"{shown}, bundle_sha256 {bundle.sha256}"


def _tls(settings: Settings) -> str:
    if not settings.tls.enabled:
        return "no port with TLS (tls.enabled)"
    lists = _revocation(settings.tls)
    server_context(settings.tls)
    return f"port {settings.tls.port}, {settings.tls.certificate} can be used, {lists}"


def _revocation(tls: TlsSection) -> str:
    if tls.crl is None:
        return "no revocation lists (tls.crl)"
    read = read_lists(tls.crl, tls.authorities)
    now = datetime.now(UTC)
    if fault := next(filter(None, (one.fault(now) for one in read.lists)), None):
        raise ConfigurationError(f"{tls.crl} lets nobody in: {fault}.")
    told = [str(one) for one in read.lists]
    told += [f"no list of {name}: whom it signed is refused" for name in read.without]
    return "; ".join(told)


def _place(path: Path, setting: str) -> str:
    path = path.absolute()
    try:
        nearest = next(one for one in (path, *path.parents) if one.exists())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be reached ({error.strerror}): set {setting} to a place of ours."
        ) from None
    if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
        raise ConfigurationError(f"{nearest} cannot be written: set {setting} to a place of ours.")
    return f"{path}{'' if nearest == path else ' (will be made)'}"


def _database(settings: Settings, *, connect: bool) -> str:
    shown = without_secrets(settings.database.url)
    if shown.startswith("sqlite"):
        return _place(Path(shown.partition(":///")[2]), "database.url")
    engine = make_engine(settings.database.url)
    if connect:
        with transaction(engine, writes=False):
            return f"{shown}, answers"
    return shown


def _broker(settings: Settings, *, connect: bool) -> str:
    if broker.is_embedded(settings.queue):
        return f"embedded, {broker.server_program()}"
    shown = without_secrets(settings.queue.url)
    if connect and Dispatcher(settings).depth() is None:
        raise Retryable(f"{shown} does not answer: studies wait in the spool until it does.")
    return shown


def _syslog(settings: Settings) -> str:
    SyslogServer(settings.audit)
    return f"{settings.audit.syslog_host}:{settings.audit.syslog_port}, certificates can be read"


def _destination(settings: Settings, destination: Destination, *, connect: bool) -> str:
    where = f"{destination.ae_title} at {destination.host}:{destination.port}, proven by {destination.verify}"
    tls = destination.tls.as_client() if destination.tls else None
    if tls is not None:
        tls.context()
        where += ", over TLS"
    if connect:
        echo(
            Peer(
                ae_title=destination.ae_title,
                host=destination.host,
                port=destination.port,
                calling_ae=settings.node.ae_title,
                timeout=settings.delivery.timeout,
                tls=tls,
            )
        )
    return f"{where}{', answers C-ECHO' if connect else ''}"


def warnings_of(settings: Settings) -> Iterator[str]:
    """What can work, and is not what a hospital wants."""
    if armed := failpoints.warning():
        yield armed
    if not settings.destinations:
        yield "No [[destinations]]: results are kept here and sent nowhere."
    if not settings.node.allowed_callers and not settings.node.callers:
        yield "node.callers and node.allowed_callers are empty: any AE title may send."
    in_utc = time.timezone == time.daylight == 0
    if settings.destinations and settings.report.time_zone is None and in_utc:
        yield "report.time_zone is unset: times of results are UTC, as those of this machine."
    titles = settings.node.caller_titles
    if settings.heartbeat.every_minutes and titles and settings.heartbeat.calling_ae not in titles:
        yield "heartbeat.calling_ae is not in node.allowed_callers or node.callers: the node will reject it."
    key: FieldInfo = DatabaseSection.model_fields["patient_hash_key"]
    if settings.database.patient_hash_key == key.default:
        yield "database.patient_hash_key is the development key: set your own before real films come."
