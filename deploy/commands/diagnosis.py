"""`doctor`, `support-bundle` and `conformance`: what does not work, and what is promised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Operate")(doctor)
    app.command("support-bundle", rich_help_panel="Operate")(support_bundle)
    app.command(rich_help_panel="Set up")(conformance)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Only this check; may be repeated.")
    ] = None,
) -> None:
    """Check everything that a study passes. Exit code 1: something is to be looked at; 2: it fails."""
    from deploy.doctor.examine import doctor as run_doctor

    raise typer.Exit(run_doctor(as_json=as_json, only=only or ()))


def support_bundle(
    out: Annotated[Path, typer.Argument(metavar="OUT.tar.gz", dir_okay=False)],
    log: Annotated[
        list[Path] | None,
        typer.Option(
            "--log", metavar="FILE", help="A log to take the end of; may be repeated.", dir_okay=False
        ),
    ] = None,
) -> None:
    """Pack what somebody who helps needs to know: no patient, no UID, no secret, no film."""
    from deploy.support import write_support_bundle
    from worker.settings import load_settings

    write_support_bundle(load_settings(), out, log or [])


def conformance() -> None:
    """Print the DICOM conformance statement (PS3.2) of the configuration in force, as Markdown."""
    from deploy.conformance import statement
    from worker.settings import load_settings

    typer.echo(statement(load_settings()), nl=False)
