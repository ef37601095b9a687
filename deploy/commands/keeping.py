"""`backup` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[Path, typer.Argument(metavar="DIR", file_okay=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Operate")(backup)
    app.command(rich_help_panel="Operate")(restore)


def backup(directory: Directory) -> None:
    """Back up ledger and spool into an empty directory, while everything goes on."""
    from deploy.backup.write import back_up
    from worker.settings import load_settings

    back_up(load_settings(), directory)


def restore(directory: Directory) -> None:
    """Bring a backup back to where the settings point, with everything stopped and nothing there yet."""
    from deploy.backup.restore import restore as bring_back
    from worker.settings import load_settings

    bring_back(load_settings(), directory)
