"""The stations alone, one study after the other: without queue, ledger and proof."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.file_meta import data_set_offset
from dicom_node.spool import Arrival, Spool
from dicom_node.store_scu import Peer, SendItem, StoreAssociation
from tests.bench.films import write_studies
from tests.bench.measure import Figures, cpu_seconds, free_port, running
from worker.keep import keep
from worker.scorer import Scorer
from worker.settings import Settings

STUDIES = 40


def run(figures: Figures, work: Path) -> None:
    """CPU of scoring (read, infer, explain, encode, keep) and of sending; `ingest` has that of receiving."""
    folder = work / "stations"
    folder.mkdir()
    settings = Settings(
        spool={"path": folder / "spool"},  # type: ignore[arg-type]
        worker={"engine_cache": work / "engine"},  # type: ignore[arg-type]
    )
    spool = Spool(settings.spool.path)
    spool.prepare()
    studies = [
        _spooled(spool, study[0]) for study in write_studies(folder / "films", STUDIES + 2, salt="alone")
    ]
    items: list[SendItem] = []
    with Scorer(settings) as scorer:

        def score(study: str) -> None:
            for output in scorer.encode(scorer.find(study, 1, spool.instances(study))):
                items.append(
                    SendItem(
                        sop_class_uid=output.sop_class_uid,
                        sop_instance_uid=output.sop_instance_uid,
                        transfer_syntax_uid=ExplicitVRLittleEndian,
                        path=keep(spool, study, output).path,
                    )
                )

        for warm in studies[:2]:
            score(warm)
        items.clear()
        before = cpu_seconds(psutil.Process())
        for study in studies[2:]:
            score(study)
        used = cpu_seconds(psutil.Process()) - before
    figures.add("stations.alone.score.cpu", "ms/study", [1000 * used / STUDIES])
    _send(figures, folder, items)
    shutil.rmtree(folder)


def _send(figures: Figures, folder: Path, items: list[SendItem]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.standin", str(folder / "pacs"), str(port), "1"]
    with running(command, folder / "pacs.log", port=port):
        before = time.process_time()
        peer = Peer(ae_title="STANDIN", host="127.0.0.1", port=port, calling_ae="COVARIANCE")
        with StoreAssociation(peer, items) as association:
            statuses = {association.send(item).status for item in items}
        used = time.process_time() - before
    if statuses != {0x0000}:
        raise RuntimeError("the stand-in did not take everything")
    figures.add("stations.alone.send.cpu", "ms/study", [1000 * used / STUDIES])


def ratio(figures: Figures) -> None:
    """How much more CPU a study takes on the whole way than in the stations alone."""
    found = figures.found
    whole = sum(
        float(found[f"end_to_end.10mb.cpu.{name}"]["value"]) for name in ("node", "worker", "deliver")
    )
    alone = ("ingest.10mb.x1.covariance.cpu", "stations.alone.score.cpu", "stations.alone.send.cpu")
    figures.add(
        "end_to_end.10mb.cpu.ratio_to_stations",
        "times",
        [whole / sum(float(found[one]["value"]) for one in alone)],
    )


def _spooled(spool: Spool, file: Path) -> str:
    with file.open("rb") as opened:
        content = file.read_bytes()[data_set_offset(opened.fileno()) :]
    arrival = Arrival(
        calling_ae="BENCH", called_ae="COVARIANCE", address="::1", received_at=datetime.now(UTC)
    )
    syntax = str(dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID)
    instance, _ = spool.store(content, transfer_syntax_uid=syntax, arrival=arrival)
    return instance.study_instance_uid
