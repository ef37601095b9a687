"""Workers on hosts of their own: a node with spool, Redis and PostgreSQL, and two hosts that only score.

A host that is lost in the middle of a study, and one whose cable is pulled, cost time and no study, and
nothing is scored into the ledger twice.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite

from tests.integration.hosts import Hosts, require_namespaces
from tests.integration.system import COVARIANCE, Program, as_toml, eventually
from tests.worker.ledger.conftest import Cluster
from worker.ledger import JobState, Ledger, StudyRecord, open_ledger
from worker.phantom import phantom_dataset
from worker.settings import Settings

_LEASE = 3.0
_PATIENCE_SECONDS = 120.0


class Served(Cluster):
    """A cluster that hosts reach over TCP, run by one of them."""

    def command(self, address: str) -> list[str]:
        command = self.foreground()
        with (self.directory / "data/pg_hba.conf").open("a") as access:
            access.write(f"host all all {address}/24 trust\n")
        return [*command, "-c", f"listen_addresses={address}", "-c", "fsync=off"]


@dataclass
class Site:
    hosts: Hosts
    folder: Path
    ledger: Ledger
    programs: dict[str, Program]
    received: Path

    def send(self, *seeds: int, salt: str) -> list[str]:
        """Send small phantoms from the host of the node; their StudyInstanceUIDs."""
        films = [phantom_dataset(seed, rows=700, columns=600, salt=salt) for seed in seeds]
        folder = self.folder / f"films-{salt}"
        folder.mkdir()
        for number, film in enumerate(films):
            dcmwrite(folder / f"{number}.dcm", film, enforce_file_format=True)
        address = self.hosts.addresses["node"]
        sending = ["storescu", "-R", "-aec", "COVARIANCE", "+sd", address, "11112", str(folder)]
        subprocess.run(self.hosts.on("node", *sending), check=True, timeout=60)
        return [film.StudyInstanceUID for film in films]

    def records(self, studies: list[str]) -> list[StudyRecord]:
        return [record for study in studies if (record := self.ledger.study(study))]

    def scores(self, host: str, studies: list[str]) -> bool:
        """Whether a worker of that host holds a claim now."""
        jobs = [job for record in self.records(studies) for job in record.jobs]
        return any(j.state == JobState.CLAIMED and j.worker and j.worker.startswith(f"{host}:") for j in jobs)

    def ended(self, studies: list[str]) -> bool:
        """Whether every study has a result whose objects are at the PACS."""
        records = self.records(studies)
        return len(records) == len(studies) and all(
            record.results
            and all(d.stored_at for r in record.results for o in r.outputs for d in o.deliveries)
            for record in records
        )

    def workers_of(self, studies: list[str]) -> set[str]:
        """The hosts whose workers finished them."""
        return {str(j.worker).partition(":")[0] for r in self.records(studies) for j in r.jobs}

    def each_once(self, studies: list[str]) -> None:
        """One job, one result, and its objects at the PACS, each once."""
        held = [dcmread(file, stop_before_pixels=True) for file in self.received.iterdir()]
        for record in self.records(studies):
            assert [(job.generation, job.state) for job in record.jobs] == [(1, JobState.DONE)]
            (result,) = record.results
            expected = sorted(output.sop_instance_uid for output in result.outputs)
            there = [ds for ds in held if ds.StudyInstanceUID == record.study_instance_uid]
            assert sorted(ds.SOPInstanceUID for ds in there) == expected
            assert sorted(ds.Modality for ds in there) == ["OT", "SR"]


@pytest.fixture(scope="module")
def site(program, tmp_path_factory) -> Iterator[Site]:
    """The node with its neighbours on one host, and two hosts with a worker each."""
    require_namespaces()
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    folder = tmp_path_factory.mktemp("site")
    received = folder / "received"
    received.mkdir()
    with Hosts(("node", "worker-a", "worker-b")) as hosts:
        address = hosts.addresses["node"]
        cluster = Served(Path(program("initdb", *map(str, places))).parent)
        tables = {
            "node": {"host": address},
            "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 0},
            "assembly": {"quiet_seconds": 0.5},
            "queue": {"url": f"redis://{address}:6379/0"},
            "database": {"url": f"postgresql+psycopg://covariance@{address}/postgres"},
            "worker": {"engine_cache": str(folder / "engine"), "lease": _LEASE, "concurrency": 1},
            "delivery": {"reconcile_seconds": 0.5, "backoff_first": 0.2, "backoff_cap": 2.0},
            "log": {"style": "json"},
        }
        pacs = {"name": "pacs", "ae_title": "STORESCP", "host": address, "port": 104, "verify": "none"}
        file = folder / "covariance.toml"
        file.write_text(as_toml(tables, [pacs]))

        def ours(host: str, name: str) -> Program:
            return hosts.program(
                host, [COVARIANCE, "--config", str(file), name], folder / f"{host}.{name}.log"
            )

        redis = [
            "redis-server",
            "--bind",
            address,
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
            str(folder),
        ]
        storescp = ["storescp", "+B", "-od", str(received), "-aet", "STORESCP", "104"]
        programs = {
            "postgresql": hosts.program("node", cluster.command(address), folder / "postgresql.log"),
            "redis": hosts.program("node", redis, folder / "redis.log"),
            "pacs": hosts.program("node", storescp, folder / "pacs.log"),
            "node": ours("node", "node"),
            "deliver": ours("node", "deliver"),
            "worker-a": ours("worker-a", "worker"),
            "worker-b": ours("worker-b", "worker"),
        }
        try:
            programs["postgresql"].start()
            eventually((cluster.directory / ".s.PGSQL.5432").exists, what="PostgreSQL answers")
            for name in list(programs)[1:]:
                programs[name].start()
            # From out here through the socket: the hosts' network is theirs alone.
            settings = Settings(**{**tables, "database": {"url": cluster.url("postgres")}})
            with open_ledger(settings, migrate=True) as ledger:
                one = Site(hosts, folder, ledger, programs, received)
                for host in ("worker-a", "worker-b"):
                    is_ready(one, host)
                yield one
        finally:
            for running in reversed(programs.values()):
                running.kill()


def is_ready(site: Site, host: str) -> None:
    log = site.programs[host].output
    what = f"{host} hears the queue"
    eventually(lambda: '"worker_ready"' in log.read_text(), what=what, seconds=_PATIENCE_SECONDS)


def all_end(site: Site, studies: list[str]) -> None:
    eventually(lambda: site.ended(studies), what="all studies have ended", seconds=_PATIENCE_SECONDS)


def test_a_host_that_is_lost_takes_no_study_with_it(site):
    """SIGKILL to all of a host while it scores: the other takes its study over when the lease is void."""
    studies = site.send(*range(1, 9), salt="lost")
    eventually(lambda: site.scores("worker-a", studies), what="worker-a scores")
    site.programs["worker-a"].kill()
    all_end(site, studies)
    site.each_once(studies)
    assert "worker-b" in site.workers_of(studies)
    site.programs["worker-a"].output.unlink()
    site.programs["worker-a"].start()
    is_ready(site, "worker-a")


def test_a_host_whose_cable_is_pulled_writes_nothing_late(site):
    """It scores on without knowing; its lease is void when the cable is back, and its fence keeps it out."""
    studies = site.send(*range(11, 19), salt="pulled")
    eventually(lambda: site.scores("worker-b", studies), what="worker-b scores")
    site.hosts.unplug("worker-b")
    began = time.monotonic()
    all_end(site, studies)
    site.each_once(studies)
    eventually(lambda: time.monotonic() - began > 2 * _LEASE, what="the lease is long void")
    site.hosts.plug("worker-b")
    more = site.send(*range(21, 25), salt="after")
    all_end(site, more)
    site.each_once([*studies, *more])
