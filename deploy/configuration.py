"""Settings as text, and whether what they point to is there."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from deploy import broker
from dicom_node.dispatch import Dispatcher
from dicom_node.errors import ConfigurationError, CovarianceError, Retryable
from dicom_node.store_scu import Peer, echo
from worker.bundle import Bundle
from worker.settings import DEFAULT_BUNDLE, DatabaseSection, Destination, Settings, load_settings

_PASSWORD = re.compile(r"(?<=:)[^:@/]+(?=@)")
_HEAD = """\
# Settings of CoVariance, each at its default: keep the lines that you change.
# `covariance --config FILE ...` or COVARIANCE_CONFIG=FILE reads this file; a variable goes before it
# (COVARIANCE_NODE__PORT=104 is `port` under [node]). Relative paths start where the command is given.
# `covariance config check FILE` says whether it can work. Written by `covariance config example`.
"""
_EXAMPLE_DESTINATION = {"name": "pacs", "ae_title": "PACS", "host": "192.0.2.10", "port": 104}


def example_file() -> str:
    """Every setting with its description and its default, as TOML."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            parts.append(f"[{name}]\n" + "\n".join(_lines(type(field.default))))
    destination = "\n".join(_lines(Destination, live=False))
    parts.append(
        f"# One table for each PACS that results are sent to; without one, results stay here.\n"
        f"# [[destinations]]\n{destination}"
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _lines(section: type[BaseModel], *, live: bool = True) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield from textwrap.wrap(field.description or "", 100, initial_indent="# ", subsequent_indent="# ")
        default = _EXAMPLE_DESTINATION.get(name) if field.is_required() else field.default
        if default == DEFAULT_BUNDLE:
            yield f"# {name} = {_toml('bundles/your-model')}  # else the one that comes with CoVariance"
        elif isinstance(default, SecretStr):
            yield f"# {name} = {_toml('a secret of your own')}"
        else:
            yield f"{'' if live else '# '}{name} = {_toml(default)}"


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
    return "\n".join([head, *(f"{name} = {_toml(value)}" for name, value in section)])


def _toml(value: Any) -> str:
    if isinstance(value, Path | SecretStr):
        value = str(value)
    if isinstance(value, str):
        value = _PASSWORD.sub("***", value) if "://" in value else value
    # JSON's strings, numbers, booleans and flat lists are TOML's, too.
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def check_settings(*, connect: bool) -> int:
    """Check everything, print a line for each, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    settings = load_settings()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("model bundle", lambda: _bundle(settings)),
        ("spool", lambda: _folder(settings.spool.path)),
        ("database", lambda: _database(settings, connect=connect)),
        ("broker", lambda: _broker(settings, connect=connect)),
    ]
    checks += [
        (f"destination {d.name}", lambda d=d: _destination(settings, d, connect))
        for d in settings.destinations
    ]
    code = 0
    for name, probe in checks:
        try:
            console.print(f"[green]✓[/] {name:<14} {probe()}")
        except CovarianceError as error:
            console.print(f"[red]✗[/] {name:<14} {error}")
            code = max(code, 1 if isinstance(error, Retryable) else 2)
    for warning in _warnings(settings):
        console.print(f"[yellow]![/] {warning}")
    return code


def _bundle(settings: Settings) -> str:
    manifest = Bundle(settings.worker.bundle).manifest
    point = manifest.operating_point
    return f"{manifest.name} {manifest.version}, threshold {point.probability:.3f} ({point.name})"


def _folder(path: Path) -> str:
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigurationError(f"{nearest} cannot be written: set spool.path to a folder of ours.")
    return f"{path.absolute()}{'' if nearest == path.absolute() else ' (will be made)'}"


def _database(settings: Settings, *, connect: bool) -> str:
    shown = _PASSWORD.sub("***", settings.database.url)
    try:
        engine = create_engine(settings.database.url)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"database.url {shown} is not usable: {type(error).__name__}.") from None
    if not connect or engine.dialect.name == "sqlite":
        return shown
    try:
        engine.connect().close()
    except SQLAlchemyError:
        raise Retryable(f"{shown} does not answer, or refuses us.") from None
    return f"{shown} answers"


def _broker(settings: Settings, *, connect: bool) -> str:
    if broker.is_embedded(settings.queue):
        return f"embedded, {broker.server_program()}"
    shown = _PASSWORD.sub("***", settings.queue.url)
    if connect and Dispatcher(settings).depth() is None:
        raise Retryable(f"{shown} does not answer: studies wait in the spool until it does.")
    return shown


def _destination(settings: Settings, destination: Destination, connect: bool) -> str:  # noqa: FBT001
    where = f"{destination.ae_title} at {destination.host}:{destination.port}, proven by {destination.verify}"
    if connect:
        echo(
            Peer(
                ae_title=destination.ae_title,
                host=destination.host,
                port=destination.port,
                calling_ae=settings.node.ae_title,
                timeout=settings.delivery.timeout,
            )
        )
    return f"{where}{', answers C-ECHO' if connect else ''}"


def _warnings(settings: Settings) -> Iterator[str]:
    if not settings.destinations:
        yield "No [[destinations]]: results are kept here and sent nowhere."
    if not settings.node.allowed_callers:
        yield "node.allowed_callers is empty: any AE title may send."
    key: FieldInfo = DatabaseSection.model_fields["patient_hash_key"]
    if settings.database.patient_hash_key == key.default:
        yield "database.patient_hash_key is the development key: set one of your own before patients' films come."
