"""`covariance score`: files through the same stations as a study that was sent, without a network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploy.overlays import save_overlay
from deploy.wrap import wrap_picture
from dicom_node.errors import ConfigurationError, Permanent, Reason, Retryable
from dicom_node.file_meta import data_set_offset
from dicom_node.header import UnreadableDataSet
from dicom_node.logs import configure_logs
from dicom_node.spool import Arrival, Spool, SpooledInstance
from dicom_node.uids import EXPLICIT_VR_LITTLE_ENDIAN
from worker.findings import Role, StudyFinding
from worker.scorer import Scorer
from worker.settings import Settings

_STYLES = {"scored": "green", "by-policy": "yellow", "quarantined": "bold red"}


@dataclass(frozen=True, kw_only=True)
class FileScore:
    """One line of the answer; the names are those of `--json`, and stay."""

    file: str
    status: str
    """`scored`, `by-policy` or `quarantined`."""
    reason: str | None = None
    probability: float | None = None
    logit: float | None = None
    decision: str | None = None
    model: str


def score_files(settings: Settings, files: Sequence[Path], *, as_json: bool, overlay: Path | None) -> int:
    """Score each file by itself, print what came of it, and return the exit code."""
    configure_logs(level="ERROR", style=settings.log.style)
    if overlay is not None:
        _make(overlay)
    errors = Console(stderr=True)
    table = Table("file", "status", "decision", "probability", "reason", box=None)
    failed = False
    columns = (TextColumn("Scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=len(files) < 3) as bar:
        task = bar.add_task("", total=len(files))
        for one in _scores(settings, files, overlay):
            failed |= one.status == "quarantined"
            bar.advance(task)
            if as_json:
                print(json.dumps(asdict(one)), flush=True)  # noqa: T201
            table.add_row(*_row(one))
    if not as_json:
        console = Console(highlight=False)
        console.print(table)
        console.print("Research software, not a medical device.", style="dim")
    return 1 if failed else 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"The folder {folder} cannot be made: {error.strerror}.") from None


def _row(one: FileScore) -> tuple[Text, ...]:
    decision = Text(one.decision or "", style="bold red" if one.decision == "positive" else "green")
    probability = "" if one.probability is None else f"{one.probability:.3f}"
    return (
        Text(one.file),
        Text(one.status, style=_STYLES[one.status]),
        decision,
        Text(probability),
        Text(one.reason or ""),
    )


def _scores(settings: Settings, files: Sequence[Path], overlay: Path | None) -> Iterator[FileScore]:
    """Score as many at once as there are decoders; the order of the files stays."""
    with (
        Scorer(settings) as scorer,
        tempfile.TemporaryDirectory(prefix="covariance-") as scratch,
        ThreadPoolExecutor(settings.worker.decoders) as pool,
    ):
        desk = _Desk(scorer, Path(scratch), overlay)
        yield from pool.map(desk.score, files, range(len(files)))


class _Desk:
    """Scores one file at a time; calls come from several threads."""

    def __init__(self, scorer: Scorer, scratch: Path, overlay: Path | None) -> None:
        self._scorer = scorer
        self._scratch = scratch
        self._overlay = overlay
        self._model = f"{scorer.model.name} {scorer.model.version} sha256:{scorer.model.sha256}"

    def score(self, file: Path, number: int) -> FileScore:
        """Take the file through the stations."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            spool = Spool(Path(folder) / "spool")
            spool.prepare()
            try:
                instance = _spooled(file, spool)
                finding = self._scorer.find(instance.study_instance_uid, 1, [instance])
                self._save(finding, file, number)
            except Permanent as error:
                return FileScore(file=str(file), status="quarantined", reason=error.reason, model=self._model)
        return self._told(file, finding)

    def _save(self, finding: StudyFinding, file: Path, number: int) -> None:
        if self._overlay is None or not finding.scores:
            return
        for output in self._scorer.encode(finding):
            if output.role is Role.SC:
                save_overlay(output.content, self._overlay / f"{number + 1:04d}-{file.stem}.png")

    def _told(self, file: Path, finding: StudyFinding) -> FileScore:
        if finding.scores:
            best = finding.scores[0]
            return FileScore(
                file=str(file),
                status="scored",
                probability=best.probability,
                logit=best.logit,
                decision=finding.decision,
                model=self._model,
            )
        if finding.set_aside:
            reason = finding.set_aside[0].eligibility.reason
            return FileScore(file=str(file), status="by-policy", reason=reason, model=self._model)
        reason = finding.quarantined[0].reason
        return FileScore(file=str(file), status="quarantined", reason=reason, model=self._model)


def _spooled(file: Path, spool: Spool) -> SpooledInstance:
    """Take a file into the spool as if it had been received.

    Raises:
        Permanent: there is no such file, or it is neither DICOM nor a picture.
        Retryable: the scratch folder cannot be written.
    """
    arrival = Arrival(
        calling_ae="COVARIANCE", called_ae="COVARIANCE", address="local", received_at=datetime.now(UTC)
    )
    try:
        data_set, syntax = _data_set(file)
    except OSError:
        raise Permanent(Reason.FILE_MISSING, f"{file.name} cannot be read.") from None
    try:
        return spool.store(data_set, transfer_syntax_uid=syntax, arrival=arrival)[0]
    except OSError as error:
        # The film is not to blame.
        raise Retryable(f"The scratch folder cannot be written: {type(error).__name__}.") from None
    except UnreadableDataSet:
        raise Permanent(Reason.UNREADABLE, f"{file.name} does not say which object it is.") from None


def _data_set(file: Path) -> tuple[bytes, str]:
    """The encoded data set of a DICOM file, or of a picture wrapped as CR, and its transfer syntax."""
    try:
        syntax = str(read_file_meta_info(file).TransferSyntaxUID)
        with file.open("rb") as content:
            content.seek(data_set_offset(content.fileno()))
            return content.read(), syntax
    except OSError:
        raise
    except Exception:  # noqa: BLE001, S110 (pydicom has many words for what is no DICOM: perhaps a picture)
        pass
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = True, False
    write_dataset(encoded, wrap_picture(file))
    return encoded.getvalue(), EXPLICIT_VR_LITTLE_ENDIAN
