"""`status`, `show`, `retry`, `release`, `purge` and `audit`: what was done, and what people may do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]

audit = typer.Typer(no_args_is_help=True, help="The audit trail.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Studies")(status)
    app.command(rich_help_panel="Studies")(show)
    app.command(rich_help_panel="Studies")(retry)
    app.command(rich_help_panel="Studies")(release)
    app.command(rich_help_panel="Studies")(purge)
    app.add_typer(audit, name="audit", rich_help_panel="Studies")


def status(
    as_json: AsJson = False,
    studies: Annotated[int, typer.Option(help="How many of the last studies to list.", min=0)] = 10,
) -> None:
    """Say what is where, station by station."""
    from deploy.overview import print_status
    from worker.settings import load_settings

    print_status(load_settings(), as_json=as_json, studies=studies)


def show(
    study: Annotated[
        str, typer.Argument(help="StudyInstanceUID, or its end if that is unique among the last.")
    ],
    as_json: AsJson = False,
) -> None:
    """Tell all about one study: images, jobs, results, outputs, deliveries, events."""
    from deploy.overview import print_study
    from worker.settings import load_settings

    print_study(load_settings(), study, as_json=as_json)


def retry(
    study: Annotated[str | None, typer.Argument(help="StudyInstanceUID; else every study.")] = None,
) -> None:
    """Have quarantined images and studies, and refused deliveries, tried again."""
    from worker.ledger import open_ledger
    from worker.settings import load_settings

    with open_ledger(load_settings(), migrate=False) as ledger:
        count = ledger.retry(study)
    typer.echo(f"{count} {'is' if count == 1 else 'are'} due again." if count else "Nothing was set aside.")


def release(study: Annotated[str, typer.Argument(help="StudyInstanceUID.")]) -> None:
    """Have a study scored now that still waits, for more images or after something was away."""
    from deploy.release import release_study
    from worker.settings import load_settings

    release_study(load_settings(), study)


def purge(
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Remove them; else only say which.")] = False,
) -> None:
    """Remove received films whose results are proven and that are older than retention.keep_days."""
    from deploy.purge import purge_films
    from worker.settings import load_settings

    purge_films(load_settings(), really=yes)


CheckpointOption = Annotated[
    Path | None, typer.Option("--file", help="The checkpoints; else `audit.checkpoints`.", dir_okay=False)
]


@audit.command()
def verify(
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="EVENTS:HASH", help="A head printed earlier: also shows that the end was cut off."
        ),
    ] = None,
    file: CheckpointOption = None,
) -> None:
    """Walk the chain, past all checkpoints. Exit code 1 if an event was changed, removed or put in."""
    from deploy.audit import verify_audit
    from worker.settings import load_settings

    raise typer.Exit(verify_audit(load_settings(), expect, file))


@audit.command()
def checkpoint(file: CheckpointOption = None) -> None:
    """Note the head of the chain now: print it, and add it to the file of checkpoints if there is one."""
    from deploy.audit import note_checkpoint
    from worker.settings import load_settings

    note_checkpoint(load_settings(), file)


@audit.command()
def roles() -> None:
    """Make the PostgreSQL roles that work and cannot change the audit trail; to be run as the owner."""
    from deploy.audit import print_roles
    from worker.settings import load_settings

    raise typer.Exit(print_roles(load_settings()))
