"""Workers whose clocks are a day off, on one ledger with one whose clock is right."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.pacs import StandInPacs
from tests.integration.conftest import free_port
from worker.phantom import phantom_dataset

SMALL = {"rows": 400, "columns": 320}
LEASE = 60.0
OFF = {"ahead": timedelta(days=1), "behind": timedelta(days=-1)}


@pytest.fixture(scope="module")
def faketime(program):
    """`faketime(off)` is the environment of a process whose clock is off; files keep their true times."""
    program("faketime")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")

    def environment(off: timedelta) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME": f"{off.total_seconds():+.0f}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    return environment


def first_time(log: Path) -> datetime | None:
    """When the worker says that it was ready, by its own clock."""
    ready = (json.loads(line) for line in log.read_text().splitlines() if '"worker_ready"' in line)
    return next((datetime.fromisoformat(line["timestamp"]) for line in ready), None)


def test_workers_a_day_apart_score_everything_once(cluster, make_system, faketime, eventually, tmp_path):
    """On PostgreSQL three workers, one a day ahead and one behind, take no claim that is alive."""
    sections = {
        "worker": {"lease": LEASE, "concurrency": 1, "decoders": 1},
        "database": {"url": cluster.new_database()},
    }
    port = free_port()
    with StandInPacs(tmp_path / "pacs", peers={"COVARIANCE": ("127.0.0.1", port)}) as pacs:
        destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs.port}
        system = make_system([destination], port=port, **sections)
        true = system.programs["worker"]
        for name, off in OFF.items():
            system.programs[name] = replace(
                true, environment=faketime(off), output=true.output.with_name(f"{name}.log")
            )
        system.start()
        for name, off in {"worker": timedelta(), **OFF}.items():
            log = system.programs[name].output
            said = eventually(lambda log=log: first_time(log), seconds=150, what=f"{name} is ready")
            assert abs(said - off - datetime.now(UTC)) < timedelta(hours=1)
        films = [phantom_dataset(60 + n, salt="a day apart", **SMALL) for n in range(6)]
        system.send(*films)
        records = [system.wait_for(film.StudyInstanceUID) for film in films]
        for program in system.programs.values():
            program.stop()
        held = Counter((one.study_instance_uid, one.modality) for one in pacs.held())
        assert held == {(f.StudyInstanceUID, m): 1 for f in films for m in ("SR", "OT")}
        assert len({record.jobs[0].worker for record in records}) == 3
        assert [(len(r.results), r.jobs[0].fence) for r in records] == [(1, 1)] * len(films)
        assert system.ledger.verify().ok


def test_machine_whose_clock_is_set_back_waits_for_nothing(make_system, faketime, eventually, tmp_path):
    """On SQLite all share one clock: what waits when it is set back by a day is sent now, not tomorrow."""
    port, pacs_port = free_port(), free_port()
    destination = {"name": "pacs", "ae_title": "STANDIN", "host": "127.0.0.1", "port": pacs_port}
    system = make_system([destination], port=port)
    for program in system.programs.values():
        program.environment = faketime(OFF["ahead"])
    system.start()
    film = phantom_dataset(70, salt="set back", **SMALL)
    system.send(film)

    def tried():
        record = system.ledger.study(film.StudyInstanceUID)
        outputs = [o for result in record.results for o in result.outputs] if record else []
        return bool(outputs) and all(d.attempts for output in outputs for d in output.deliveries)

    eventually(tried, seconds=150, what="the results wait for a PACS that is away")
    for program in system.programs.values():
        program.stop()
        program.environment = {}
    with StandInPacs(tmp_path / "pacs", port=pacs_port, peers={"COVARIANCE": ("127.0.0.1", port)}) as pacs:
        system.start()
        system.wait_for(film.StudyInstanceUID)
        assert sorted(one.modality for one in pacs.held()) == ["OT", "SR"]
