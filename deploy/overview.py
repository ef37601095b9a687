"""The state of the whole and of one study, for people and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from deploy import broker
from dicom_node.dispatch import Dispatcher
from dicom_node.errors import CovarianceError
from dicom_node.lanes import Lane
from dicom_node.logs import configure_logs
from dicom_node.spool import Spool
from worker.heartbeat import heartbeat_age
from worker.ledger import DeliveryRecord, DeliveryState, Ledger, StudyRecord, open_ledger
from worker.senders import silences
from worker.settings import Settings
from worker.silence import SILENT_BELOW

_STYLES = {
    "positive": "bold red",
    "negative": "green",
    "scored": "green",
    "done": "green",
    "committed": "green",
    "verified": "green",
    "quarantined": "bold red",
    "failed": "bold red",
    "parked": "bold red",
    "by_policy": "yellow",
}

_UNCUT = 10_000


def print_status(settings: Settings, *, as_json: bool, studies: int) -> None:
    """Print what is where, and the last studies."""
    configure_logs(level="ERROR")
    with open_ledger(settings, migrate=False) as ledger:
        state = {
            "spool": _spool(settings, ledger),
            "queue": _queue(settings),
            "silence": {sender: asdict(one) for sender, one in silences(settings, ledger).items()},
            "heartbeat": _heartbeat(settings, ledger),
            **asdict(ledger.status()),
            "last_studies": [asdict(one) for one in ledger.studies(studies)],
        }
    if as_json:
        print(json.dumps(state, default=_plain, indent=2))  # noqa: T201
        return
    console = Console(highlight=False)
    console.print(_stations(state))
    if state["last_studies"]:
        console.print()
        # A UID is there to be copied: a line may be longer than the window.
        Console(highlight=False, width=max(console.width, 120)).print(_studies(state["last_studies"]))


def _spool(settings: Settings, ledger: Ledger) -> dict[str, int]:
    root = settings.spool.path
    found = list(Spool(root).studies()) if (root / "studies").is_dir() else []
    registered = ledger.registered_counts()
    return {
        "studies": len(found),
        "images": sum(study.instances for study in found),
        "unregistered": sum(
            max(study.instances - registered.get(study.study_instance_uid, 0), 0) for study in found
        ),
        "free_bytes": shutil.disk_usage(root).free if root.is_dir() else 0,
    }


def _queue(settings: Settings) -> dict[str, Any]:
    depths = Dispatcher(broker.reachable(settings)).depths()
    return {"waiting": None if depths is None else sum(depths.values()), "lanes": depths or {}}


def _heartbeat(settings: Settings, ledger: Ledger) -> dict[str, float | None] | None:
    if not settings.heartbeat.every_minutes:
        return None
    return {"age_seconds": heartbeat_age(settings, ledger)}


def _silence(found: Mapping[str, Mapping[str, Any]]) -> Text:
    parts = []
    for sender, one in found.items():
        told = f"{sender} {one['observed']} in {one['hours']} h, usually {one['usual']:g}"
        parts.append(Text(told, "bold red" if one["probability"] < SILENT_BELOW else ""))
    return Text(", ").join(parts)


def _stations(state: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    spool, queue = state["spool"], state["queue"]
    table.add_row(
        "spool",
        f"{spool['images']} images of {spool['studies']} studies, "
        f"{spool['unregistered']} not registered yet, {spool['free_bytes'] / 1e9:.0f} GB free",
    )
    table.add_row("queue", queue_in_words(queue["waiting"], queue["lanes"]))
    if state["silence"]:
        table.add_row("senders", _silence(state["silence"]))
    if state["heartbeat"]:
        age = state["heartbeat"]["age_seconds"]
        table.add_row("heartbeat", "none has come through" if age is None else f"{age:.0f} s old")
    table.add_row("images", _counts(state["images"]))
    for name in ("by_policy", "quarantined"):
        if state[name]:
            table.add_row(f"  {name.replace('_', ' ')}", _counts(state[name]))
    if state["purged"]:
        table.add_row("  purged", str(state["purged"]))
    table.add_row("jobs", _counts(state["jobs"]))
    table.add_row("results", _counts(state["results"]))
    for destination, counts in state["deliveries"].items():
        table.add_row(f"to {destination}", _counts(counts))
    for name, seconds in state["oldest_seconds"].items():
        table.add_row(f"  oldest {name}", f"{seconds:.0f} s")
    table.add_row("audit", f"{state['head']['events']} events, head {state['head']['hash'][:16]}")
    return table


def queue_in_words(depth: int | None, lanes: Mapping[str, int]) -> str:
    """How many messages wait, and in which lanes."""
    if depth is None:
        return "the broker does not answer"
    told = ", ".join(f"{count} {lane}" for lane, count in lanes.items() if count)
    return f"{depth} waiting ({told})" if told else "0 waiting"


def _counts(counts: Mapping[str, int]) -> Text:
    parts = [Text(f"{count} ").append_text(_word(name)) for name, count in counts.items() if count]
    return Text(", ").join(parts) if parts else Text("none", "dim")


def _studies(studies: list[dict[str, Any]]) -> Table:
    table = Table("study", "images", "job", "decision", "prob.", "deliveries", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for one in studies:
        table.add_row(
            one["study_instance_uid"],
            str(one["images"]),
            _job(one["job"], one["reason"]),
            _word(one["decision"]),
            "" if one["probability"] is None else f"{one['probability']:.3f}",
            _counts(one["deliveries"]),
        )
    return table


def _job(state: str | None, reason: str | None) -> Text:
    return _word(state) if reason is None else Text.assemble(_word(state), f" {reason}")


def _word(value: str | None) -> Text:
    """A state in words and in its colour; a reason stays the code that it is."""
    words = (value or "-").replace("_", " ") if not value or value.islower() else value
    return Text(words, style=_STYLES.get(value or "", ""))


def print_study(settings: Settings, study: str, *, as_json: bool) -> None:
    """Print all about one study.

    Raises:
        CovarianceError: no study, or more than one, is meant by `study`.
    """
    with open_ledger(settings, migrate=False) as ledger:
        record = ledger.study(study) or _by_end(ledger, study)
    if as_json:
        print(json.dumps(asdict(record), default=_plain, indent=2))  # noqa: T201
        return
    tree = Tree(Text(record.study_instance_uid, style="bold"))
    for branch, lines in _told(record):
        twig = tree.add(branch)
        for line in lines:
            twig.add(line)
    # A tree is cut at the width of its console, and at the end of a line stands what to do.
    Console(highlight=False, width=_UNCUT).print(tree)


def _by_end(ledger: Ledger, end: str) -> StudyRecord:
    among = ledger.studies_that_end(end)
    record = ledger.study(among[0]) if len(among) == 1 else None
    if record is None:
        raise CovarianceError(
            f"{'More than one study ends' if among else 'No study in the ledger ends'} with {end}: "
            "`covariance status` lists the last ones."
        )
    return record


def _told(record: StudyRecord) -> Iterator[tuple[str, list[Text]]]:
    if record.conflict_at:
        since = _time(record.conflict_at)
        yield (
            f"[bold red]IDENTITY_CONFLICT[/]: two patients, nothing is sent since {since}",
            [],
        )
    yield (
        "images",
        [
            Text.assemble(
                one.sop_instance_uid,
                f"  from {one.calling_ae} at {_time(one.received_at)}  ",
                _word(one.disposition),
                "  purged" if one.purged_at else "",
                f"  p={one.probability:.3f}" if one.probability is not None else "",
                _why(one.reason, one.sentence),
            )
            for one in record.images
        ],
    )
    yield (
        "jobs",
        [
            Text.assemble(
                f"generation {one.generation}  ",
                _word(one.state),
                f"  attempt {one.attempt}",
                f"  {one.lane}" if one.lane and one.lane is not Lane.ROUTINE else "",
                f"  finished {_time(one.finished_at)}" if one.finished_at else "",
                _why(one.reason, one.sentence),
            )
            for one in record.jobs
        ],
    )
    for result in record.results:
        head = f"result of generation {result.generation}: {result.decision or 'not analysed'}"
        if result.probability is not None:
            head += (
                f", p={result.probability:.3f} (threshold {result.threshold:.3f}, {result.operating_point})"
            )
        if result.recalled_at:
            head += ", recalled"
        elif result.superseded_at:
            head += ", superseded"
        yield (
            f"{head}, {result.model_name} {result.model_version} on {result.engine}",
            [
                Text.assemble(
                    f"{output.role.upper()}  {output.sop_instance_uid}  → {one.destination}  ",
                    _word(one.state),
                    f"  {_time(one.proven_at or one.stored_at)}" if one.stored_at else "",
                    _tries(one),
                    f"  {one.sentence}" if one.sentence else "",
                )
                for output in result.outputs
                for one in output.deliveries
            ],
        )
    yield "events", [Text(f"{one.seq}  {one.at}  {one.kind}") for one in record.events]


def _tries(delivery: DeliveryRecord) -> str:
    """What a destination said to what still waits for it."""
    if delivery.state is not DeliveryState.DUE or not delivery.attempts:
        return ""
    status = delivery.last_status
    said = "no answer" if status is None else f"0x{status:04X}"
    return f"  {delivery.attempts} {'try' if delivery.attempts == 1 else 'tries'}, last answer: {said}"


def _why(reason: str | None, sentence: str | None) -> str:
    return "  " + ": ".join(part for part in (reason, sentence) if part) if reason else ""


def _time(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else ""


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
