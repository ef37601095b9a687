"""All checks in the order of the way of a study, printed as they are made."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape

from deploy.configuration import warnings_of
from deploy.doctor import certificates, listener, machine, network, scoring, services
from deploy.doctor.check import Check, Level, Probe, exit_code, fail, ok, run_probe, warn
from dicom_node.errors import ConfigurationError
from dicom_node.logs import configure_logs
from worker.settings import Settings, load_settings

PROBES: dict[str, Probe] = {
    "disk": machine.disk,
    "spool": machine.spool,
    "clock": machine.clock,
    "dns": network.names,
    "ports": listener.ports,
    "own-node": listener.own_node,
    "tls": certificates.certificates,
    "database": services.database,
    "broker": services.queue,
    "bundle": scoring.bundle,
    "engine": scoring.engine,
    "gpu": scoring.gpu,
    "destinations": network.destinations,
}
"""By the name that `--only` takes, from where a study comes in to where its results go."""

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def examine(only: Collection[str] = ()) -> Iterator[Check]:
    """Make the checks; without usable settings there is only one.

    Raises:
        ConfigurationError: `only` names a check that is none.
    """
    if unknown := sorted(set(only) - PROBES.keys()):
        raise ConfigurationError(f"There is no check {unknown[0]}: {', '.join(PROBES)}.")
    try:
        settings = load_settings()
    except ConfigurationError as error:
        yield fail("settings", str(error), "Correct the file: `covariance config check FILE`.")
        return
    yield from _settings(settings)
    for name, probe in PROBES.items():
        if not only or name in only:
            yield from run_probe(name, probe, settings)


def _settings(settings: Settings) -> Iterator[Check]:
    warnings = list(warnings_of(settings))
    for one in warnings:
        yield warn("settings", one, "See `covariance config example`.")
    if not warnings:
        yield ok("settings", "They can be read.")


def doctor(*, as_json: bool, only: Collection[str]) -> int:
    """Make the checks, print a line for each, and return the exit code."""
    configure_logs(level="ERROR")
    console = Console(highlight=False, soft_wrap=True)
    checks: list[Check] = []
    for one in examine(only):
        checks.append(one)
        if not as_json:
            style = _STYLES[one.level]
            console.print(f"[{style}]{one.level:<4}[/] {escape(one.name):<14} {escape(one.sentence)}")
            if one.advice:
                console.print(f"     {'':<14} → {escape(one.advice)}")
    if as_json:
        print(as_document(checks))  # noqa: T201
    return exit_code(checks)


def as_document(checks: Collection[Check]) -> str:
    """The checks as JSON."""
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "exit_code": exit_code(checks),
        "checks": [asdict(one) for one in checks],
    }
    return json.dumps(document, indent=2)
