"""How far a study has come, and the table that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich import box
from rich.table import Table
from rich.text import Text

from worker.findings import Role
from worker.ledger import DeliveryState, JobState, OutputRecord, StudyRecord

_RULED = box.Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
_CAPTION = "Seconds: wait for a worker, score, store at the PACS, proof that it has it."
_PROVEN = {DeliveryState.COMMITTED, DeliveryState.VERIFIED}
_STUCK = {DeliveryState.FAILED, DeliveryState.PARKED}


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """One study as the ledger shows it now."""

    label: str
    images: int
    outcome: str
    """`positive`, `negative`, a reason, or how far it has come."""
    probability: float | None = None
    seconds: tuple[float | None, ...] = (None,) * 4
    """From the last image to the claim, from there to the record, to the PACS, until proven."""
    reports: tuple[int, int] = (0, 0)
    """Structured reports that the PACS has proven, and all."""
    captures: tuple[int, int] = (0, 0)
    """Secondary captures likewise."""
    finished: bool = False
    succeeded: bool = False


def progress_of(
    record: StudyRecord | None, *, label: str, images: int, proof_expected: bool = True
) -> StudyProgress:
    """Read off a record how far its newest generation has come."""
    if record is None or not record.jobs:
        return StudyProgress(label=label, images=images, outcome="assembling")
    job, complete = record.jobs[-1], len(record.images) >= images
    if job.state in (JobState.READY, JobState.CLAIMED):
        outcome = "waiting" if job.state is JobState.READY else "scoring"
        return StudyProgress(label=label, images=images, outcome=outcome)
    # In force: a later generation may have found nothing new and left the result of an earlier one standing.
    in_force = [one for one in record.results if one.superseded_at is None]
    if job.state is not JobState.DONE or not in_force:
        reason = job.reason or _first_reason(record) or job.state
        done = complete and job.state is not JobState.SUPERSEDED
        return StudyProgress(label=label, images=images, outcome=str(reason), finished=done)
    result = in_force[-1]
    job = next(one for one in record.jobs if one.generation == result.generation)
    came = [one.received_at for one in record.images if one.generation in range(1, result.generation + 1)]
    good = _PROVEN if proof_expected else _PROVEN | {DeliveryState.STORED}
    states = [one.state for output in result.outputs for one in output.deliveries]
    sent = [one for output in result.outputs for one in output.deliveries]
    proven = bool(states) and all(state in good for state in states)
    return StudyProgress(
        label=label,
        images=images,
        outcome=result.decision or _first_reason(record) or "not analysed",
        probability=result.probability,
        seconds=(
            _between(_latest(came), job.claimed_at),
            _between(job.claimed_at, job.finished_at),
            _between(job.finished_at, _latest(one.stored_at for one in sent)),
            _between(_latest(one.stored_at for one in sent), _latest(one.proven_at for one in sent)),
        ),
        reports=_count(result.outputs, Role.SR, good),
        captures=_count(result.outputs, Role.SC, good),
        finished=complete and (proven or any(state in _STUCK for state in states)),
        succeeded=complete and proven,
    )


def _first_reason(record: StudyRecord) -> str | None:
    return next((str(one.reason) for one in record.images if one.reason), None)


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    """The last of the times; None while one of them is not there yet."""
    found = list(times)
    known = [at for at in found if at is not None]
    return max(known) if known and len(known) == len(found) else None


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None


def _count(outputs: Sequence[OutputRecord], role: Role, good: set[DeliveryState]) -> tuple[int, int]:
    mine = [output for output in outputs if output.role is role]
    return sum(all(one.state in good for one in output.deliveries) for output in mine), len(mine)


def progress_table(rows: Sequence[StudyProgress], *, proof: str = "committed") -> Table:
    """The studies with what came of them, in the last column whether it is so; times in seconds.

    Args:
        rows: the studies.
        proof: what the PACS is to do in the end, in one word.
    """
    table = Table(box=_RULED, header_style="bold", padding=(0, 1, 0, 0), caption=_CAPTION, show_edge=False)
    table.caption_justify = "left"
    table.add_column("study", no_wrap=True)
    table.add_column("decision", no_wrap=True, min_width=len("NOT_FRONTAL"))
    table.add_column("prob.", justify="right", no_wrap=True)
    for name in ("wait", "score", "store", "proof"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("SR", "SC", proof):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row.label,
            _decision(row),
            "" if row.probability is None else f"{row.probability:.3f}",
            *("" if one is None else f"{one:.1f}" for one in row.seconds),
            _ticks(*row.reports),
            _ticks(*row.captures),
            Text("yes", "bold green") if row.succeeded else Text("no", "bold red") if row.finished else "",
        )
    return table


def _decision(row: StudyProgress) -> Text:
    styles = {"positive": "bold yellow", "negative": "green"}
    waits = {"assembling", "waiting", "scoring"}
    return Text(row.outcome, style="dim" if row.outcome in waits else styles.get(row.outcome, "cyan"))


def _ticks(proven: int, total: int) -> Text:
    return Text("✓" * proven, style="green") + Text("·" * (total - proven), style="dim")
