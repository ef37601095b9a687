"""A hospital's CoVariance in one folder: films in the spool, scored by the real worker, with two PACS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from deploy.pacs import StandInPacs
from dicom_node.spool import Spool
from tests.integration.system import as_toml
from tests.worker.conftest import ARRIVAL
from worker.deliver import Deliverer
from worker.ledger import Ledger, open_ledger
from worker.phantom import phantom_dataset
from worker.pipeline import Pipeline
from worker.scorer import Scorer
from worker.settings import Settings

STUDIES = ("1.2.840.71", "1.2.840.72")
FAMILY, PATIENT_ID, ACCESSION = "Kowalczyk", "PID-77120", "ACC-90210"
"""What no log, report or bundle may hold."""


def film(study: str, seed: int = 0) -> Dataset:
    """A phantom that bears a name."""
    ds = phantom_dataset(seed, rows=520, columns=430)
    ds.StudyInstanceUID, ds.PatientID, ds.AccessionNumber = study, PATIENT_ID, ACCESSION
    ds.PatientName = f"{FAMILY}^Jan"
    return ds


def spool_film(spool: Spool, ds: Dataset) -> None:
    """Put a data set into a spool, as the node would."""
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    start = 144 + int.from_bytes(content[140:144], "little")
    spool.store(content[start:], transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID), arrival=ARRIVAL)


def settings_of(folder: Path, ports: dict[str, int], **sections: Any) -> Settings:
    """The settings, and beside them `covariance.toml` with the same."""
    tables: dict[str, dict[str, Any]] = {
        "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 0},
        "database": {"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
        "worker": {"engine_cache": str(folder / "engine"), "decoders": 1},
        "queue": {"embedded_path": str(folder / "valkey")},
    }
    for name, values in sections.items():
        tables.setdefault(name, {}).update(values)
    destinations = [
        {
            "name": name,
            "ae_title": name.upper(),
            "host": "127.0.0.1",
            "port": port,
            "verify": "none",
            "rejection_notes": name == "iocm",
        }
        for name, port in ports.items()
    ]
    (folder / "covariance.toml").write_text(as_toml(tables, destinations))
    return Settings(**{**tables, "destinations": destinations})  # type: ignore[arg-type]


class Site:
    """What a test looks at."""

    def __init__(self, folder: Path, pacs: dict[str, StandInPacs]) -> None:
        self.folder, self.pacs = folder, pacs
        self.settings = settings_of(folder, {name: one.port for name, one in pacs.items()})
        self.spool = Spool(self.settings.spool.path)

    def ledger(self) -> Ledger:
        """Open the ledger."""
        return open_ledger(self.settings, migrate=False)

    def deliver(self) -> None:
        """Send all that is due."""
        with self.ledger() as ledger:
            for one in self.settings.destinations:
                Deliverer(one, settings=self.settings, ledger=ledger).step()

    def held(self, name: str, study: str) -> list[tuple[str, str]]:
        """Modality and UID of what a PACS holds."""
        return sorted((one.modality, one.sop_instance_uid) for one in self.pacs[name].held(study))


@pytest.fixture(scope="session")
def scored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies, scored."""
    folder = tmp_path_factory.mktemp("scored")
    settings = settings_of(folder, {"iocm": 1, "plain": 2})
    spool = Spool(settings.spool.path)
    spool.prepare()
    for number, study in enumerate(STUDIES):
        spool_film(spool, film(study, number))
    with Scorer(settings) as scorer, open_ledger(settings, migrate=True) as ledger:
        pipeline = Pipeline(settings=settings, spool=spool, ledger=ledger, scorer=scorer, worker="w")
        for study in STUDIES:
            pipeline.score_study(study)
    return folder


@pytest.fixture
def site(tmp_path: Path, scored_folder: Path) -> Iterator[Site]:
    """A copy of it, with two PACS: `iocm` takes rejection notes, `plain` does not."""
    shutil.copytree(scored_folder, tmp_path, dirs_exist_ok=True)
    pacs = {name: StandInPacs(tmp_path / "pacs" / name, ae_title=name.upper()) for name in ("iocm", "plain")}
    for one in pacs.values():
        one.start()
    yield Site(tmp_path, pacs)
    for one in pacs.values():
        one.stop()
