"""`model`: from a bundle in a folder to the one that scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

model = typer.Typer(no_args_is_help=True, help="Model bundles: install, verify, activate, roll back.")

Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="bundle_sha256, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(model, name="model", rich_help_panel="Operate")
    app.command(rich_help_panel="Operate")(shadow)


@model.command()
def install(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle.", file_okay=False)],
) -> None:
    """Copy a bundle into the store. It does not score before it is activated."""
    from deploy.models import install_model
    from worker.settings import load_settings

    install_model(load_settings(), directory)


@model.command("list")
def list_bundles(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the store. Exit code 1 if a bundle was damaged."""
    from deploy.models import list_models
    from worker.settings import load_settings

    raise typer.Exit(list_models(load_settings(), as_json=as_json))


@model.command()
def verify(
    digest: Annotated[str | None, typer.Argument(metavar="[DIGEST]", help="Else the one in use.")] = None,
) -> None:
    """Check every digest and replay the golden cases on this machine."""
    from deploy.models import verify_model
    from worker.settings import load_settings

    verify_model(load_settings(), digest)


@model.command()
def activate(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="bundle_sha256, its beginning, or `shipped`: ours.")
    ],
) -> None:
    """Have a bundle score, from the next start of a worker; only after the parity gate, and on record."""
    from deploy.models import activate_model
    from worker.settings import load_settings

    activate_model(load_settings(), None if digest == "shipped" else digest)


@model.command()
def rollback() -> None:
    """Have the bundle score that was in use before."""
    from deploy.models import roll_back
    from worker.settings import load_settings

    roll_back(load_settings())


def shadow(
    digest: Annotated[str, typer.Argument(metavar="[DIGEST]", help="Only this shadow.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say how far the bundle of worker.shadow_bundle agrees with the one in use, on live traffic."""
    from deploy.shadow import print_shadow
    from worker.settings import load_settings

    print_shadow(load_settings(), shadow=digest, as_json=as_json)
