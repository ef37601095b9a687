"""A ledger on SQLite and one on a real PostgreSQL, a clock that tests move, and findings to record."""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from dicom_node import uids
from dicom_node.errors import Reason
from dicom_node.spool import SpooledInstance
from worker.findings import (
    Eligibility,
    Film,
    ImageScore,
    KeptOutput,
    ModelIdentity,
    Reading,
    Rejected,
    Role,
    StudyFinding,
    Verdict,
)
from worker.ledger import (
    Claim,
    DeliveryRecord,
    DueDelivery,
    Ledger,
    Recorded,
    Registration,
    StudyRecord,
    open_ledger,
)
from worker.ledger.models import Base
from worker.ledger.store import Files, make_engine
from worker.settings import DatabaseSection, Settings

LEASE = timedelta(seconds=60)
DESTINATION = "pacs"


class Clock:
    """The time, as the test has it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


_AS_OWNER = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=keep")


class Cluster:
    """A PostgreSQL server of our own, on a socket in a directory of our own."""

    def __init__(self, programs: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="covariance-pg-"))
        self._programs = programs
        self._numbers = count()
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the owner of the cluster."""
        command = [str(self._programs / program), *arguments]
        if os.getuid() == 0:
            command = [*_AS_OWNER, *command]
        # Output to a file: the server inherits it, and a pipe would stay open for as long as it lives.
        with (self.directory / "log").open("a") as log:
            done = subprocess.run(command, cwd="/", stdout=log, stderr=log, check=False)
        assert done.returncode == 0, (self.directory / "log").read_text()

    def foreground(self) -> list[str]:
        """Make the cluster, and return the command that runs its server in the foreground."""
        self._initialise()
        command = [str(self._programs / "postgres"), "-D", str(self.directory / "data")]
        command += ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.directory}"]
        return [*_AS_OWNER, *command] if os.getuid() == 0 else command

    def _initialise(self) -> None:
        data = str(self.directory / "data")
        self.run("initdb", "-D", data, "-U", "covariance", "--auth=trust", "--no-sync", "--encoding=UTF8")

    def start(self) -> None:
        self._initialise()
        data = str(self.directory / "data")
        options = f"-c listen_addresses='' -c unix_socket_directories={self.directory} -c fsync=off"
        self.run("pg_ctl", "-D", data, "-w", "-o", options, "-l", f"{self.directory}/server.log", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.directory)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://covariance@/{database}?host={self.directory}"

    def new_database(self) -> str:
        """The URL of a new and empty database."""
        name = f"ledger_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, *statements: str, database: str = "postgres") -> None:
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()


@pytest.fixture(scope="session")
def cluster(program) -> Iterator[Cluster]:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    cluster = Cluster(Path(program("initdb", *map(str, places))).parent)
    cluster.start()
    yield cluster
    cluster.stop()


def settings_for(url: str) -> Settings:
    return Settings(database=DatabaseSection(url=url))


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'ledger.sqlite3'}"
    return request.getfixturevalue("cluster").new_database()


@pytest.fixture(scope="session")
def sqlite_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"
    open_ledger(settings_for(f"sqlite:///{path}"), migrate=True).close()
    shutil.copy(path, path.with_suffix(".template"))
    return path


@pytest.fixture(scope="session")
def postgresql_url(cluster: Cluster) -> str:
    url = cluster.new_database()
    open_ledger(settings_for(url), migrate=True).close()
    return url


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest) -> str:
    """A database with the schema of this version and without a row."""
    if backend == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        for beside in ("-wal", "-shm"):
            path.with_name(path.name + beside).unlink(missing_ok=True)
        shutil.copy(path.with_suffix(".template"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("postgresql_url")
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    # A new database for every test would cost a second each.
    request.getfixturevalue("cluster").execute(
        "ALTER TABLE events DISABLE TRIGGER USER",
        f"TRUNCATE {tables} RESTART IDENTITY",
        "ALTER TABLE events ENABLE TRIGGER USER",
        database=make_url(url).database,
    )
    return url


@pytest.fixture
def settings(url: str) -> Settings:
    return settings_for(url)


@pytest.fixture
def empty_settings(empty_url: str) -> Settings:
    return settings_for(empty_url)


@functools.cache
def engine_for(url: str) -> Engine:
    """One engine a URL: it keeps compiled statements, which cost more than the database does."""
    return make_engine(url)


@pytest.fixture
def database(url: str) -> Iterator[Engine]:
    """The database behind the ledger's back; every statement is its own transaction."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(settings: Settings, clock: Clock) -> Iterator[Ledger]:
    key = settings.database.patient_hash_key.get_secret_value().encode()
    with Ledger(engine_for(settings.database.url), key, Files(settings.spool.path), clock) as ledger:
        yield ledger


MODEL = ModelIdentity(
    name="densenet121-covid",
    version="1.0.0",
    sha256="a" * 64,
    temperature=1.0,
    recipe="stretch-320",
    engine="openvino 2026.4.1",
    precision="f32",
    threshold=0.5,
    operating_point="youden@dev",
)

OTHER_MODEL = replace(MODEL, version="2.0.0", sha256="b" * 64)


SOURCE = b"".join(
    struct.pack("<HH2sH", group, number, vr, len(value)) + value
    for group, number, vr, value in (
        (0x0008, 0x0050, b"SH", b"ACCESSION-17 "),
        (0x0010, 0x0010, b"PN", b"NOBODY^AT ALL "),
    )
)
"""What a reading takes from its film, Explicit VR Little Endian."""


def spooled(study: str, sop: str, content: str = "pixels") -> SpooledInstance:
    """An image as the spool describes it."""
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return SpooledInstance(
        study_instance_uid=study,
        series_instance_uid=f"{study}.1",
        sop_instance_uid=sop,
        sop_class_uid=uids.DIGITAL_XRAY_FOR_PRESENTATION,
        transfer_syntax_uid=uids.EXPLICIT_VR_LITTLE_ENDIAN,
        sha256=sha256,
        path=Path(f"/spool/studies/{study}/{sop}_{sha256}.dcm"),
        size=5_000_000_000,
        calling_ae="MODALITY",
        called_ae="COVARIANCE",
        address="192.0.2.7",
        received_at=datetime(2026, 3, 1, 11, 59, 30, 123456, tzinfo=UTC),
    )


def reading_of(instance: SpooledInstance, reason: Reason | None = None) -> Reading:
    film = Film(
        input_HW=np.zeros((4, 4), np.uint8),
        display_HW=np.zeros((4, 4), np.uint8),
        rows=2500,
        columns=2048,
        bits_stored=12,
        inverted=True,
        window="LINEAR 2048/4096",
    )
    verdict = Verdict.ELIGIBLE if reason is None else Verdict.INELIGIBLE
    return Reading(
        sop_instance_uid=instance.sop_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        series_instance_uid=instance.series_instance_uid,
        eligibility=Eligibility(verdict=verdict, reason=reason, open_questions=("PatientAge",)),
        source=SOURCE,
        patient_digest="digest-of-nobody",
        film=film if reason is None else None,
    )


def finding_of(
    claim: Claim,
    *,
    by_policy: Sequence[str] = (),
    rejected: Sequence[str] = (),
    model: ModelIdentity = MODEL,
) -> StudyFinding:
    """A finding that scores every claimed image but those named."""
    scored = [i for i in claim.instances if i.sop_instance_uid not in (*by_policy, *rejected)]
    cam_hw = np.ones((2, 2), np.float32)
    basis = "".join(sorted(f"{i.sop_instance_uid} {i.sha256}\n" for i in scored))
    return StudyFinding(
        study_instance_uid=claim.study_instance_uid,
        generation=claim.generation,
        input_set_hash=hashlib.sha256(basis.encode()).hexdigest(),
        analysed_at=datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC),
        model=model,
        scores=tuple(
            ImageScore(reading=reading_of(i), logit=1.25, probability=0.7773, cam_hw=cam_hw) for i in scored
        ),
        set_aside=tuple(
            reading_of(i, Reason.NOT_FRONTAL) for i in claim.instances if i.sop_instance_uid in by_policy
        ),
        quarantined=tuple(
            Rejected(sop_instance_uid=sop, reason=Reason.DECODER_TIMEOUT, sentence="It took too long.")
            for sop in rejected
        ),
    )


def outputs_of(finding: StudyFinding) -> list[KeptOutput]:
    """An SR and an SC with names that follow from the finding."""
    outputs = []
    for role, sop_class in ((Role.SC, uids.SECONDARY_CAPTURE), (Role.SR, uids.COMPREHENSIVE_3D_SR)):
        names = (finding.study_instance_uid, finding.model.configuration, role)
        sop = uids.derive_uid(*names, finding.input_set_hash, str(finding.generation))
        outputs.append(
            KeptOutput(
                role=role,
                sop_class_uid=sop_class,
                sop_instance_uid=sop,
                series_instance_uid=uids.derive_uid(*names),
                sha256=hashlib.sha256(sop.encode()).hexdigest(),
                path=Path(f"/spool/outbox/{finding.study_instance_uid}/{sop}.dcm"),
            )
        )
    return outputs


class Given:
    """Brings a ledger to where a test begins."""

    other_model = OTHER_MODEL
    other_threshold = replace(MODEL, threshold=0.9)
    lease = LEASE
    spooled = staticmethod(spooled)
    finding = staticmethod(finding_of)
    outputs = staticmethod(outputs_of)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def registered(self, study: str, *sops: str) -> Registration:
        return self._ledger.register(study, [spooled(study, sop) for sop in sops])

    def try_claim(self, study: str, *, worker: str = "w1", maximum_attempts: int = 3) -> Claim | None:
        return self._ledger.claim(study, worker=worker, lease=LEASE, maximum_attempts=maximum_attempts)

    def claimed(self, study: str, *sops: str, worker: str = "w1") -> Claim:
        self.registered(study, *sops)
        claim = self.try_claim(study, worker=worker)
        assert claim is not None
        return claim

    def scored(self, study: str, *sops: str, destinations: Sequence[str] = (DESTINATION,)) -> StudyFinding:
        claim = self.claimed(study, *sops)
        finding = finding_of(claim)
        recorded = self._ledger.record(claim, finding, outputs_of(finding), destinations)
        assert recorded is Recorded.RECORDED
        return finding

    def due(self, study: str, destination: str = DESTINATION) -> DueDelivery:
        """Score a study and return the delivery of its SR."""
        self.scored(study, f"{study}.1.1", destinations=[destination])
        due = self._ledger.due_deliveries(destination, 100)
        return next(d for d in due if d.role is Role.SR and d.study_instance_uid == study)

    def stored(self, study: str, destination: str = DESTINATION) -> DueDelivery:
        """Score a study and store its SR."""
        delivery = self.due(study, destination)
        self._ledger.deliveries_sent({delivery.delivery_id: 0x0000})
        return delivery

    def delivery(self, wanted: DueDelivery) -> DeliveryRecord:
        """The delivery of the same object as it stands now."""
        study = self._ledger.study(wanted.study_instance_uid)
        assert study is not None
        outputs = [output for result in study.results for output in result.outputs]
        return next(o for o in outputs if o.sop_instance_uid == wanted.sop_instance_uid).deliveries[0]

    def study(self, study: str) -> StudyRecord:
        record = self._ledger.study(study)
        assert record is not None
        return record

    def ends(self, study: str) -> dict[str, tuple[str, str | None]]:
        """Disposition and reason by SOP instance."""
        return {i.sop_instance_uid: (i.disposition, i.reason) for i in self.study(study).images}

    def events(self, study: str, kind: str) -> list[dict[str, Any]]:
        return [event.body for event in self.study(study).events if event.kind == kind]


@pytest.fixture
def given(ledger: Ledger) -> Given:
    return Given(ledger)
