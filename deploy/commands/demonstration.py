"""`demo`: the whole way once, on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Proof(StrEnum):
    """How the PACS proves what it stored."""

    COMMITMENT = "commitment"
    FIND = "find"
    NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Set up")(demo)


def demo(
    studies: Annotated[
        Path | None, typer.Option(metavar="PATH", help="DICOM, PNG or JPEG files to send; else phantoms.")
    ] = None,
    pacs: Annotated[
        str | None, typer.Option(metavar="HOST:PORT/AET", help="A real PACS; else a stand-in is started.")
    ] = None,
    verify: Annotated[Proof, typer.Option(help="How the PACS proves what it stored.")] = Proof.COMMITMENT,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the proof.")
    ] = 120.0,
    folder: Annotated[Path, typer.Option(help="Where everything of the demo is kept.")] = Path("build/demo"),
) -> None:
    """Run the whole once: send studies, score them, and wait until a PACS has committed to the results.

    A real PACS must know our AE title at node.port of the settings, and send its report there.
    """
    from deploy.demo import run_demo

    code = run_demo(folder=folder, studies=studies, pacs=pacs, verify=verify.value, patience=patience)
    raise typer.Exit(code)
