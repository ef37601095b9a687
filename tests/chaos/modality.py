"""Modalities: they make small films, and send each until it is answered with 0x0000."""

from __future__ import annotations

import queue
import random
import threading
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import derive_uid
from tests.chaos.oracle import Sent, data_set_sha256
from worker.phantom import phantom_dataset

_SIDE = 300
_TEMPLATES = 3
_AGAIN_SECONDS = 0.3
_THREADS = 3


@dataclass(frozen=True, kw_only=True)
class Film:
    """A file, and what its sender will note."""

    item: SendItem
    sent: Sent


class Films:
    """Makes studies: most of one film, some of two, some with a late, a repeated or a contradicting one."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._dice = dice
        size = {"rows": _SIDE, "columns": _SIDE}
        self._frontal = [phantom_dataset(seed, **size) for seed in range(_TEMPLATES)]
        self._lateral = phantom_dataset(0, view="LL", **size)
        self._number = 0
        self._earlier: list[Dataset] = []

    def next(self) -> list[Film]:
        """The films of a study, or a film more for one that was sent before."""
        self._number += 1
        kind = self._dice.choices(("one", "two", "late", "again", "other"), (76, 8, 8, 4, 4))[0]
        if kind in ("late", "again", "other") and self._earlier:
            first = self._earlier.pop(self._dice.randrange(len(self._earlier)))
            return [self._write(self._after(kind, first))]
        frontal = self._new(self._dice.choice(self._frontal))
        self._earlier.append(frontal)
        del self._earlier[:-20]
        if kind != "two":
            return [self._write(frontal)]
        lateral = self._of_study(self._lateral, frontal)
        return [self._write(frontal), self._write(lateral)]

    def _new(self, template: Dataset) -> Dataset:
        film = deepcopy(template)
        uid = derive_uid("chaos", str(self._number), "study")
        film.StudyInstanceUID, film.SeriesInstanceUID = uid, derive_uid(uid, "series")
        film.SOPInstanceUID = derive_uid(uid, "frontal")
        film.PatientID = f"PHANTOM-{uid[-10:]}"
        return film

    def _after(self, kind: str, first: Dataset) -> Dataset:
        if kind == "again":
            return first
        if kind == "late":
            return self._of_study(self._frontal[0], first)
        other = deepcopy(first)
        other.PixelData = bytes(reversed(other.PixelData))
        return other

    def _of_study(self, template: Dataset, first: Dataset) -> Dataset:
        film = deepcopy(template)
        film.StudyInstanceUID, film.PatientID = first.StudyInstanceUID, first.PatientID
        film.SeriesInstanceUID = derive_uid(first.StudyInstanceUID, "series", str(self._number))
        film.SOPInstanceUID = derive_uid(first.StudyInstanceUID, "more", str(self._number))
        return film

    def _write(self, film: Dataset) -> Film:
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
        path = self._folder / f"{self._number}-{film.SOPInstanceUID}.dcm"
        film.save_as(path, enforce_file_format=True)
        item = SendItem(
            sop_class_uid=film.SOPClassUID,
            sop_instance_uid=film.SOPInstanceUID,
            transfer_syntax_uid=film.file_meta.TransferSyntaxUID,
            path=path,
        )
        sent = Sent(
            study_instance_uid=film.StudyInstanceUID,
            sop_instance_uid=film.SOPInstanceUID,
            sha256=data_set_sha256(path.read_bytes()),
        )
        return Film(item=item, sent=sent)


class Modality:
    """Sends what it is given, from several threads, and notes each 0x0000 with its time."""

    def __init__(self, port: int, *, ae_title: str = "MODALITY", called: str = "COVARIANCE") -> None:
        self._peer = Peer(ae_title=called, host="127.0.0.1", port=port, calling_ae=ae_title, timeout=10.0)
        self._waiting: queue.SimpleQueue[Film | None] = queue.SimpleQueue()
        self._given = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered: dict[Sent, float] = {}
        """When each object was first answered with 0x0000, by the monotonic clock."""
        self.answers = 0
        self.tries = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def send(self, film: Film) -> None:
        self._given += 1
        self._waiting.put(film)

    @property
    def outstanding(self) -> int:
        """Films that were given and are not answered yet."""
        return self._given - self.answers

    def sent(self) -> dict[Sent, float]:
        with self._lock:
            return dict(self.answered)

    def close(self) -> None:
        self._stop.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (film := self._waiting.get()) is not None:
            while not self._stop.is_set() and self._try(film) != 0:
                self._stop.wait(_AGAIN_SECONDS)
            with self._lock:
                self.answered.setdefault(film.sent, time.monotonic())
                self.answers += 1

    def _try(self, film: Film) -> int | None:
        with self._lock:
            self.tries += 1
        try:
            with StoreAssociation(self._peer, [film.item]) as association:
                return association.send(film.item).status
        except (PeerUnavailable, OSError):
            return None
