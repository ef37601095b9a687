"""A whole CoVariance in real processes, with real Orthanc, DCMTK and Redis as its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.system import (
    COVARIANCE,
    Orthanc,
    Program,
    System,
    accepts,
    as_toml,
    eventually,
    free_port,
    orthanc_configuration,
)
from worker.ledger import open_ledger
from worker.settings import Settings


@pytest.fixture(scope="module")
def redis_port(program, tmp_path_factory) -> Iterator[int]:
    """A real Redis on a free port."""
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    server = program("redis-server")
    command = [server, "--port", str(port), "--dir", str(folder), "--save", "", "--bind", "127.0.0.1"]
    running = Program(command, folder / "log").start()
    try:
        eventually(lambda: accepts(port), what="Redis listens")
        yield port
    finally:
        running.stop()


@pytest.fixture(name="eventually", scope="session")
def eventually_fixture() -> Callable[..., Any]:
    return eventually


@pytest.fixture(scope="module")
def storescp(program, tmp_path_factory) -> Iterator[tuple[int, Path]]:
    """The port of DCMTK's receiver, and the folder to which it writes the bytes that it gets."""
    folder, port = tmp_path_factory.mktemp("storescp"), free_port()
    received = folder / "received"
    received.mkdir()
    command = [program("storescp"), "+B", "-od", str(received), "-aet", "STORESCP", str(port)]
    running = Program(command, folder / "log").start()
    try:
        eventually(lambda: accepts(port), what="storescp listens")
        yield port, received
    finally:
        running.stop()


@pytest.fixture(scope="module")
def node_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def orthanc(program, tmp_path_factory, node_port) -> Iterator[Orthanc]:
    """A real Orthanc that knows our node as the modality `covariance`."""
    folder = tmp_path_factory.mktemp("orthanc")
    port, http_port = free_port(), free_port()
    file = folder / "orthanc.json"
    file.write_text(json.dumps(orthanc_configuration(folder, port, http_port, node_port)))
    one = Orthanc(
        port, http_port, Program([program("Orthanc", "/usr/sbin/Orthanc"), str(file)], folder / "log")
    )
    try:
        one.start()
        yield one
    finally:
        one.program.stop()


@pytest.fixture(scope="module")
def make_system(tmp_path_factory, redis_port) -> Iterator[Callable[..., System]]:
    """`make_system(destinations, port=..., **sections)` configures a CoVariance; `start` runs it."""
    made: list[System] = []

    def make(
        destinations: list[dict[str, Any]], *, port: int | None = None, **sections: dict[str, Any]
    ) -> System:
        folder = tmp_path_factory.mktemp("covariance")
        port = port or free_port()
        number = len(made)
        tables: dict[str, dict[str, Any]] = {
            "node": {"port": port},
            "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 0},
            "assembly": {"quiet_seconds": 0.5},
            "queue": {"url": f"redis://127.0.0.1:{redis_port}/{number}", "prefix": f"test{number}:"},
            "database": {"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
            "worker": {"engine_cache": str(folder / "engine"), "lease": 2.0},
            "delivery": {
                "backoff_first": 0.2,
                "backoff_cap": 2.0,
                "permanent_attempts": 5,
                "reconcile_seconds": 0.5,
            },
            "log": {"style": "json"},
        }
        for name, values in sections.items():
            tables.setdefault(name, {}).update(values)
        file = folder / "covariance.toml"
        file.write_text(as_toml(tables, destinations))
        programs = {
            name: Program([COVARIANCE, "--config", str(file), name], folder / f"{name}.log")
            for name in ("node", "worker", "deliver")
        }
        settings = Settings(**{**tables, "destinations": destinations})  # type: ignore[arg-type]
        system = System(folder, port, redis_port, programs, settings, open_ledger(settings, migrate=True))
        made.append(system)
        return system

    yield make
    for system in made:
        system.stop()
