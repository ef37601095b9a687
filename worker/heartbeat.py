"""The heartbeat: a phantom that goes the whole way on a schedule, so that a broken way is seen before a
patient's film takes it.

Its UIDs are keyed with the secret of the site. A film that anybody else sends is never taken for one,
whatever it calls itself, and is delivered as every other.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import tempfile
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from pydicom import Dataset, dcmwrite

from dicom_node.errors import Retryable
from dicom_node.logs import get_logger
from dicom_node.status import Status
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import derive_uid
from worker import metrics
from worker.ledger import Beat, Ledger, PurgeRule
from worker.ledger.store import Clock, utcnow
from worker.settings import Settings

log = get_logger("heartbeat")

PATIENT_ID = "COVARIANCE-HEARTBEAT"
"""No patient's: every heartbeat study has it."""
_ROWS, _COLUMNS = 1024, 840
_REMEMBERED_BEATS = 500
_TIDY_SECONDS = 3600.0
_TIDY_STUDIES = 200


class HeartbeatUids:
    """What a heartbeat study of this site is called, and whether a study is one."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def study(self, beat: int) -> str:
        """StudyInstanceUID of a beat: the same for every process that sends it."""
        return derive_uid("heartbeat", self._sealed(str(beat)))

    def image(self, study_instance_uid: str) -> str:
        """SOPInstanceUID of its only image."""
        return derive_uid("heartbeat image", self._sealed(study_instance_uid))

    def own(self, study_instance_uid: str, sop_instance_uids: Iterable[str]) -> bool:
        """Whether this is a heartbeat study, and nothing else is in it."""
        return list(sop_instance_uids) == [self.image(study_instance_uid)]

    def _sealed(self, text: str) -> str:
        return hmac.new(self._key, f"heartbeat {text}".encode(), hashlib.sha256).hexdigest()


def heartbeat_uids(settings: Settings) -> HeartbeatUids:
    """Those of the site that the settings are of."""
    return HeartbeatUids(settings.database.patient_hash_key.get_secret_value().encode())


class Heartbeat:
    """Sends one film every `heartbeat.every_minutes`, and knows when the last one came through."""

    def __init__(self, settings: Settings, ledger: Ledger, *, clock: Clock = utcnow) -> None:
        self._settings = settings.heartbeat
        self._ledger = ledger
        self._clock = clock
        self._uids = heartbeat_uids(settings)
        self._period = self._settings.every_minutes * 60
        self._peer = _peer(settings)
        self._trusted = tuple(one.name for one in settings.destinations if one.verify == "none")
        self._film: Dataset | None = None
        self._sent: int | None = None
        self._tidy_at = 0.0
        # Until one has come through, its age is that of our waiting for it.
        self._since = clock()
        metrics.HEARTBEAT_PERIOD.set(self._period)
        metrics.HEARTBEAT_AGE.set_function(lambda: max((clock() - self._since).total_seconds(), 0.0))

    def step(self) -> None:
        """Send the beat that is due, see which came through, and let old films go.

        Raises:
            Retryable: node or database are away.
        """
        beat = int(self._clock().timestamp() // self._period)
        self._look(beat)
        if beat != self._sent:
            self._send(beat)
            self._sent = beat
        if time.monotonic() >= self._tidy_at:
            self._tidy()
            self._tidy_at = time.monotonic() + _TIDY_SECONDS

    def _look(self, beat: int) -> None:
        if last := _last(self._ledger, self._uids, beat, self._period):
            self._since = last.received_at
            metrics.HEARTBEAT_SECONDS.set((last.recorded_at - last.received_at).total_seconds())

    def _send(self, beat: int) -> None:
        film = self._made(beat)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "heartbeat.dcm"
            dcmwrite(path, film, enforce_file_format=True)
            item = SendItem(
                sop_class_uid=film.SOPClassUID,
                sop_instance_uid=film.SOPInstanceUID,
                transfer_syntax_uid=film.file_meta.TransferSyntaxUID,
                path=path,
            )
            try:
                with StoreAssociation(self._peer, [item]) as association:
                    status = association.send(item).status
            except PeerUnavailable as error:
                metrics.HEARTBEATS.labels("unavailable").inc()
                raise Retryable(f"The heartbeat did not reach our node: {error}") from None
        if status != Status.SUCCESS:
            metrics.HEARTBEATS.labels("refused").inc()
            raise Retryable("Our node did not take the heartbeat.")
        metrics.HEARTBEATS.labels("stored").inc()
        log.info("heartbeat_sent", study=film.StudyInstanceUID)

    def _made(self, beat: int) -> Dataset:
        if self._film is None:
            # Late: who sends no heartbeat need not load what draws one.
            from worker.phantom import phantom_dataset  # noqa: PLC0415

            self._film = phantom_dataset(0, rows=_ROWS, columns=_COLUMNS)
            self._film.PatientID, self._film.PatientName = PATIENT_ID, "HEARTBEAT^COVARIANCE"
            self._film.StudyDescription = "Heartbeat, synthetic phantom"
        film, study = self._film, self._uids.study(beat)
        film.StudyInstanceUID, film.SeriesInstanceUID = study, derive_uid(study, "series")
        film.SOPInstanceUID = self._uids.image(study)
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
        film.StudyID, film.AccessionNumber = str(beat)[-16:], ""
        return film

    def _tidy(self) -> None:
        """Let the films of old beats go, as retention lets go of others; the rows stay."""
        before = self._clock() - timedelta(hours=self._settings.keep_hours)
        kept = self._ledger.kept_from(self._settings.calling_ae, before=before, limit=_TIDY_STUDIES)
        going = [study for study, images in kept.items() if self._uids.own(study, images)]
        if going:
            rule = PurgeRule(received_before=before, trusted=self._trusted, quarantined=True)
            self._ledger.purge(going, rule)


def heartbeat_age(settings: Settings, ledger: Ledger) -> float | None:
    """Seconds since the last beat that has a result was received; None where none of the last day has."""
    now, period = utcnow(), settings.heartbeat.every_minutes * 60
    last = _last(ledger, heartbeat_uids(settings), int(now.timestamp() // period), period)
    return None if last is None else max((now - last.received_at).total_seconds(), 0.0)


def _last(ledger: Ledger, uids: HeartbeatUids, beat: int, period: float) -> Beat | None:
    count = min(math.ceil(86_400 / period) + 1, _REMEMBERED_BEATS)
    found = ledger.beats([uids.study(one) for one in range(beat - count + 1, beat + 1)])
    return found[-1] if found else None


def _peer(settings: Settings) -> Peer:
    heartbeat, node = settings.heartbeat, settings.node
    host = "127.0.0.1" if node.host == "0.0.0.0" else node.host  # noqa: S104
    tls = heartbeat.tls.as_client() if heartbeat.tls else None
    return Peer(
        ae_title=node.ae_title,
        host=heartbeat.host or host,
        port=heartbeat.port or (settings.tls.port if tls else node.port),
        calling_ae=heartbeat.calling_ae,
        timeout=settings.delivery.timeout,
        tls=tls,
    )
