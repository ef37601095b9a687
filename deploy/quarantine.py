"""`covariance quarantine`: what could not be scored and why, and a second chance for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from dicom_node.errors import ConfigurationError, Reason
from dicom_node.logs import configure_logs
from worker.ledger import QuarantinedImage, QuarantinedStudy, open_ledger
from worker.settings import Settings


def print_quarantine(settings: Settings, *, reason: str | None, as_json: bool, limit: int) -> None:
    """List quarantined images, and studies that are held without one."""
    configure_logs(level="ERROR")
    wanted = _reason(reason)
    with open_ledger(settings, migrate=False) as ledger:
        everything: list[QuarantinedImage | QuarantinedStudy] = [
            *ledger.quarantined_studies(),
            *ledger.quarantined(),
        ]
    found = [one for one in everything if wanted in (None, one.reason)]
    if as_json:
        print(json.dumps([asdict(one) for one in found], default=str, indent=2))  # noqa: T201
        return
    console = Console(highlight=False, soft_wrap=True)
    for one in found[:limit]:
        console.print(escape(_line(one)))
    if len(found) > limit:
        console.print(f"and {len(found) - limit} more")
    console.print(_summary(found))


def release(settings: Settings, *, study: str | None, reason: str | None) -> int:
    """Have quarantined images read again; return the exit code: 1 when there was nothing to release."""
    configure_logs(level="ERROR")
    with open_ledger(settings, migrate=False) as ledger:
        studies = ledger.release_quarantine(study_instance_uid=study, reason=_reason(reason))
    console = Console(highlight=False, soft_wrap=True)
    for one in studies:
        console.print(one)
    console.print(f"{len(studies)} studies are scored again.")
    return 0 if studies else 1


def _reason(text: str | None) -> Reason | None:
    if text is None:
        return None
    try:
        return Reason(text.upper())
    except ValueError:
        raise ConfigurationError(
            f"There is no reason {text}: `covariance status` names those there are."
        ) from None


def _line(one: QuarantinedImage | QuarantinedStudy) -> str:
    if isinstance(one, QuarantinedStudy):
        return f"{one.study_instance_uid}  the whole study  {one.reason}: {one.sentence}"
    at = one.received_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    held = "" if one.work else " (cannot be released: it never was work)"
    return (
        f"{one.study_instance_uid}  {one.sop_instance_uid}  from {one.calling_ae} at {at}  "
        f"{one.reason}: {one.sentence}{held}"
    )


def _summary(found: Sequence[QuarantinedImage | QuarantinedStudy]) -> str:
    reasons = Counter(str(one.reason) for one in found)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "nothing"
    return f"Quarantined: {told}."
