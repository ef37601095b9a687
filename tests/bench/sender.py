"""Sending: our Storage SCU beside DCMTK's storescu, to the same storescp that keeps nothing."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from dicom_node.store_scu import Peer, SendItem, StoreAssociation
from tests.bench.films import write_studies
from tests.bench.measure import PEER_ENVIRONMENT, Figures, free_port, running

ROUNDS = 5
OBJECTS = {"10mb": 40, "3mb": 120}


def run(figures: Figures, work: Path) -> None:
    """Objects a second over one association, each turn both senders; the ratio of a turn is what holds."""
    folder, port = work / "sender", free_port()
    folder.mkdir()
    command = ["storescp", "--ignore", "-aet", "SINK", str(port)]
    with running(command, folder / "log", port=port):
        for size, objects in OBJECTS.items():
            studies = write_studies(folder / "films", objects, size=size, salt=f"sender-{size}")
            files = [study[0] for study in studies]
            ours, theirs = [], []
            for turn in range(ROUNDS):
                pair: list[tuple[list[float], Callable[[int, list[Path]], None]]] = [
                    (ours, _ours),
                    (theirs, _storescu),
                ]
                for rates, send in pair if turn % 2 else pair[::-1]:
                    started = time.monotonic()
                    send(port, files)
                    rates.append(objects / (time.monotonic() - started))
            figures.add(f"sender.{size}.covariance", "objects/s", ours)
            figures.add(f"sender.{size}.storescu", "objects/s", theirs)
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            figures.add(f"sender.{size}.ratio_to_storescu", "times", ratios)
            shutil.rmtree(folder / "films")


def _ours(port: int, files: list[Path]) -> None:
    items = [
        SendItem(
            sop_class_uid=ComputedRadiographyImageStorage,
            sop_instance_uid=str(number),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            path=file,
        )
        for number, file in enumerate(files, start=1)
    ]
    peer = Peer(ae_title="SINK", host="127.0.0.1", port=port, calling_ae="BENCH")
    with StoreAssociation(peer, items) as association:
        if any(association.send(item).status != 0 for item in items):
            raise RuntimeError("our sender could not send everything")


def _storescu(port: int, files: list[Path]) -> None:
    command = ["storescu", "-aec", "SINK", "127.0.0.1", str(port), *map(str, files)]
    subprocess.run(command, check=True, env=PEER_ENVIRONMENT)
