"""`quarantine`, `recall` and `reprocess`: correct what was not scored, or was scored wrongly."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is changed.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="CODE", help="Only this reason, e.g. DECODER_TIMEOUT.")
]

quarantine = typer.Typer(no_args_is_help=True, help="Images that could not be scored.")


class RejectedFor(StrEnum):
    """Title of a rejection note."""

    QUALITY = "quality"
    SAFETY = "safety"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(quarantine, name="quarantine", rich_help_panel="Operate")
    app.command(rich_help_panel="Operate")(recall)
    app.command(rich_help_panel="Operate")(reprocess)


@quarantine.command("list")
def list_quarantine(
    reason: ReasonOption = None,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(help="How many to list.", min=1)] = 50,
) -> None:
    """List quarantined images with their reasons."""
    from deploy.quarantine import print_quarantine
    from worker.settings import load_settings

    print_quarantine(load_settings(), reason=reason, as_json=as_json, limit=limit)


@quarantine.command("release")
def release_quarantine(
    study: Annotated[str | None, typer.Argument(help="StudyInstanceUID.")] = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Have quarantined images read again: those of a study, of a reason, or all."""
    from deploy.quarantine import release
    from dicom_node.errors import ConfigurationError
    from worker.settings import load_settings

    if study is None and reason is None and not everything:
        raise ConfigurationError("Say which: a study, --reason CODE or --all.")
    raise typer.Exit(release(load_settings(), study=study, reason=reason))


def recall(
    model: Annotated[
        str, typer.Option("--model", metavar="DIGEST", help="SHA-256 of model.onnx, or its beginning.")
    ],
    rejected_for: Annotated[
        RejectedFor, typer.Option(help="Title of the notes, for destinations with rejection_notes.")
    ] = RejectedFor.QUALITY,
    because: Annotated[
        str, typer.Option(metavar="SENTENCE", help="Why, for the audit trail; no patients.")
    ] = "The model was recalled.",
    yes: Yes = False,
) -> None:
    """List every result of a withdrawn model; with --yes, withdraw them where they were sent.

    Exit code 1 if a destination must be told by hand.
    """
    from deploy.recalls import recall_model
    from worker.report.withdrawal import Why
    from worker.settings import load_settings

    why = Why(rejected_for.value)
    raise typer.Exit(recall_model(load_settings(), model, why=why, sentence=because, really=yes))


def reprocess(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]...", help="StudyInstanceUIDs.")
    ] = None,
    *,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle to score with; else the one in use.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Received at this time (UTC) or later.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Received before this time (UTC).")] = None,
    sender: Annotated[str | None, typer.Option(metavar="AET", help="An image of it came from there.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Scored at any time by the model that begins so.")
    ] = None,
    recalled: Annotated[bool, typer.Option("--recalled", help="Left without a result by a recall.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every study.")] = False,
    yes: Yes = False,
) -> None:
    """Score a selection of studies again, on this machine; conditions narrow it down."""
    from deploy.reprocess import reprocess as run_reprocess
    from dicom_node.errors import ConfigurationError
    from worker.ledger import Selection
    from worker.settings import load_settings

    selection = Selection(
        studies=tuple(studies or ()),
        received_from=since.replace(tzinfo=UTC) if since else None,
        received_before=before.replace(tzinfo=UTC) if before else None,
        calling_ae=sender,
        model=model,
        recalled=recalled,
    )
    if selection == Selection() and not everything:
        raise ConfigurationError("Say which studies: UIDs, a condition, or --all.")
    raise typer.Exit(run_reprocess(load_settings(), selection, bundle=bundle, really=yes))
