"""The stack that chaos is made of: every part a process, and a supervisor that starts again what dies."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import create_engine, text

from tests.chaos.oracle import AtPacs, Judgement, Sent, held_in, judge, read_at_pacs
from tests.integration.system import (
    COVARIANCE,
    Orthanc,
    Program,
    accepts,
    as_toml,
    eventually,
    free_port,
    orthanc_configuration,
)
from tests.worker.ledger.conftest import Cluster
from worker.ledger import open_ledger
from worker.office import Office
from worker.settings import Settings

_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Whoever kills the harness leaves nothing behind."""
OURS = ("node", "worker", "deliver")
LEASE = 5.0
_LOOK_SECONDS = 0.1
_PAUSE_SECONDS = 0.5
_LATER = timedelta(hours=2)


@dataclass
class Stack:
    """Broker, database, PACS, node, worker and deliverer. Make it with `make_stack`."""

    folder: Path
    file: Path
    settings: Settings
    programs: dict[str, Program]
    port: int
    broker_port: int
    orthanc: Orthanc | None
    cluster: Cluster | None
    second_worker: Program
    """Not started, and not supervised: it takes over when the first stands still."""
    restarts: Counter[str] = field(default_factory=Counter)
    _held: set[str] = field(default_factory=set)
    _started: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start everything, and from then on what ends."""
        for name in self.programs:
            self._start(name)
            if name == "database":
                self._await_database()
        threading.Thread(target=self._supervise, daemon=True).start()
        eventually(lambda: accepts(self.port), seconds=120, what="the node listens")

    def stop(self) -> None:
        self._stop.set()
        with self._lock:
            self.second_worker.stop()
            for name, program in reversed(self.programs.items()):
                if name == "database":
                    program.kill(signal.SIGINT)  # a fast shutdown; SIGTERM waits for every client
                program.stop()
        if self.cluster is not None:
            shutil.rmtree(self.cluster.directory)

    def arm(self, failpoints: dict[str, str]) -> None:
        """Start our processes anew, each with its points armed."""
        for name in OURS:
            self.programs[name].environment = {"COVARIANCE_FAILPOINTS": failpoints.get(name, "")}
            self.kill(name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> bool:
        """Send a signal to one process, and not to its children; False where it does not run."""
        with self._lock:
            process = self.programs[name].process
            if process is None or process.poll() is not None:
                return False
            os.kill(process.pid, number)
            return True

    def kill_child(self, name: str, dice: random.Random, *, having: str) -> bool:
        """SIGKILL one child process whose command line holds a word."""
        process = self.programs[name].process
        assert process is not None
        try:
            children = psutil.Process(process.pid).children()
            of_kind = [one for one in children if having in " ".join(one.cmdline())]
            dice.choice(of_kind).kill()
        except (psutil.Error, IndexError):
            return False
        return True

    def hold(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a process and keep it down until `release`."""
        with self._lock:
            self._held.add(name)
            self.programs[name].kill(number)

    def release(self, name: str) -> None:
        self._held.discard(name)

    def renew(self, name: str, environment: dict[str, str]) -> None:
        """End a process in good order; it is started again in this environment."""
        with self._lock:
            program = self.programs[name]
            program.environment = environment
            program.stop()

    @contextmanager
    def database_down(self) -> Iterator[None]:
        """No database for anyone: PostgreSQL is stopped, SQLite's only writer is us."""
        if self.cluster is not None:
            self.hold("database", signal.SIGINT)
            yield
            self.release("database")
            return
        engine = create_engine(self.settings.database.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("PRAGMA busy_timeout = 60000"))
            connection.execute(text("BEGIN IMMEDIATE"))
            yield
            connection.execute(text("ROLLBACK"))
        engine.dispose()

    def flush_broker(self) -> None:
        with redis.Redis(port=self.broker_port) as client:
            client.flushall()

    def judge(self, sent: Sequence[Sent]) -> Judgement:
        """Ask the oracle, hours later."""
        with open_ledger(self.settings, migrate=False) as ledger:
            self._let_hours_pass()
            Office(self.settings, ledger).sweep()
            return judge(sent, spool=self.settings.spool.path, ledger=ledger, pacs=self._at_pacs())

    def _let_hours_pass(self) -> None:
        # What dead processes left behind is removed when it is old: its times go back, not our clock on.
        then = time.time() - _LATER.total_seconds()
        for pattern in ("incoming/*", "outbox/*/*"):
            for path in self.settings.spool.path.glob(pattern):
                os.utime(path, (then, then))

    def _at_pacs(self) -> list[AtPacs]:
        if self.orthanc is None:
            return held_in(self.folder / "pacs")
        return [read_at_pacs(self.orthanc.file(one)) for one in self.orthanc.find()]

    def _await_database(self) -> None:
        assert self.cluster is not None
        cluster = self.cluster

        def answers() -> bool:
            try:
                cluster.execute("SELECT 1")
            except Exception:  # noqa: BLE001 (whatever a driver says of a server that starts)
                return False
            return True

        eventually(answers, what="the database answers")

    def _supervise(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            for name in self.programs:
                with self._lock:
                    process = self.programs[name].process
                    ended = process is not None and process.poll() is not None
                    paused = time.monotonic() - self._started[name] >= _PAUSE_SECONDS
                    if ended and paused and name not in self._held and not self._stop.is_set():
                        self.restarts[name] += 1
                        self._start(name)

    def _start(self, name: str) -> None:
        self._started[name] = time.monotonic()
        self.programs[name].start()


def make_stack(
    folder: Path,
    *,
    database: str = "sqlite",
    pacs: str = "standin",
    destination: dict[str, Any] | None = None,
    wrap: dict[str, list[str]] | None = None,
    **sections: dict[str, Any],
) -> Stack:
    """Write the settings and name the processes, without starting any.

    Args:
        folder: where everything is kept.
        database: `sqlite` or `postgresql`.
        pacs: `standin` or `orthanc`.
        destination: keys of the destination that replace the usual ones, such as the port of a proxy.
        wrap: what stands before the command of a process, such as `strace` or `faketime`.
        sections: settings that replace the usual ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, broker_port, pacs_port, http_port = (free_port() for _ in range(4))
    programs: dict[str, Program] = {}
    redis_server = [
        *_WITH_US,
        "redis-server",
        "--port",
        str(broker_port),
        "--dir",
        str(folder),
        "--bind",
        "127.0.0.1",
    ]
    redis_server += ["--save", "", "--appendonly", "yes"]
    programs["broker"] = Program(redis_server, folder / "broker.log")
    cluster, url = None, f"sqlite:///{folder / 'ledger.sqlite3'}"
    if database == "postgresql":
        cluster = Cluster(_postgresql_programs())
        programs["database"] = Program([*_WITH_US, *cluster.foreground()], folder / "database.log")
        url = cluster.url("postgres")
    orthanc = None
    if pacs == "orthanc":
        configuration = folder / "orthanc.json"
        told = orthanc_configuration(folder / "orthanc", pacs_port, http_port, port)
        configuration.write_text(json.dumps(told))
        programs["pacs"] = Program([*_WITH_US, "Orthanc", str(configuration)], folder / "pacs.log")
        orthanc = Orthanc(pacs_port, http_port, programs["pacs"])
    else:
        standin = [*_WITH_US, sys.executable, "-m", "tests.bench.standin", folder / "pacs", pacs_port, port]
        programs["pacs"] = Program([str(part) for part in standin], folder / "pacs.log")
    tables: dict[str, dict[str, Any]] = {
        "node": {"port": port},
        "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 0},
        "assembly": {"quiet_seconds": 0.5},
        "queue": {"url": f"redis://127.0.0.1:{broker_port}/0"},
        "database": {"url": url},
        # Workers die here for no fault of their films: none is to be given up for that.
        "worker": {"engine_cache": str(folder / "engine"), "lease": LEASE, "maximum_attempts": 1000},
        "delivery": {"backoff_first": 0.2, "backoff_cap": 2.0, "reconcile_seconds": 0.5, "timeout": 10.0},
        "log": {"style": "json"},
    }
    for name, values in sections.items():
        tables.setdefault(name, {}).update(values)
    where = {"name": "pacs", "ae_title": "ORTHANC" if orthanc else "STANDIN", "host": "127.0.0.1"}
    where |= {"port": pacs_port, "commitment_timeout": 3.0, **(destination or {})}
    file = folder / "covariance.toml"
    file.write_text(as_toml(tables, [where]))
    for name in OURS:
        command = [*_WITH_US, *(wrap or {}).get(name, []), COVARIANCE, "--config", str(file), name]
        programs[name] = Program(command, folder / f"{name}.log")
    settings = Settings(**{**tables, "destinations": [where]})  # type: ignore[arg-type]
    second = Program(programs["worker"].command, folder / "second-worker.log")
    return Stack(folder, file, settings, programs, port, broker_port, orthanc, cluster, second)


def _postgresql_programs() -> Path:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else places[0]
