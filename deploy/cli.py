"""The `covariance` command: its options, its exit codes and how it says that something failed.

Exit codes: 0 all is well; 1 something failed or is not done; 2 usage or settings are wrong.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deploy.commands import (
    configuration,
    corrections,
    demonstration,
    diagnosis,
    engines,
    films,
    keeping,
    models,
    services,
    studies,
    upkeep,
    workers,
)
from dicom_node.errors import ConfigurationError, CovarianceError


class Commands(TyperGroup):
    """Turns our errors into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except CovarianceError as error:
            typer.secho(f"covariance: {error}", fg="red", err=True)
            raise typer.Exit(2 if isinstance(error, ConfigurationError) else 1) from None


app = typer.Typer(
    name="covariance",
    cls=Commands,
    no_args_is_help=True,
    # A traceback with the values of variables would print what a data set holds.
    pretty_exceptions_enable=False,
    help="Scores chest radiographs for COVID-19 and writes the results back to the PACS. "
    "Research software, not a medical device.",
)
_NOUNS = (
    services,
    films,
    keeping,
    studies,
    corrections,
    models,
    workers,
    diagnosis,
    engines,
    configuration,
    upkeep,
    demonstration,
)
for noun in _NOUNS:
    noun.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415 (only here)

        typer.echo(f"covariance {version('covariance')}")
        raise typer.Exit


@app.callback()
def options(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Settings file; else $COVARIANCE_CONFIG.", dir_okay=False
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    if config is not None:
        from dicom_node.settings import use_file  # noqa: PLC0415 (`--help` answers at once)

        use_file(config)


def main() -> None:
    """Run the command line."""
    _keep_private()
    app()


def _keep_private() -> None:
    # Inherited by all that is started from here, the broker included: what has no mode of its own is private.
    os.umask(0o077)
    # The memory of a process that crashes holds films and names.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
