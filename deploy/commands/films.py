"""`score` and `send`: what is done with files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Films")(score)
    app.command(rich_help_panel="Films")(send)


def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="DICOM, PNG or JPEG.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each file.")] = False,
    overlay: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Leave a PNG for each scored film there.")
    ] = None,
) -> None:
    """Score files on this machine, without any network. Exit code 1 if one could not be read."""
    from deploy.score import score_files
    from worker.settings import load_settings

    raise typer.Exit(score_files(load_settings(), files, as_json=as_json, overlay=overlay))


def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS...", help="DICOM files, or folders of them.")],
    *,
    to: Annotated[
        str | None, typer.Option(metavar="HOST:PORT/AET", help="Where to send; else our own node.")
    ] = None,
    calling: Annotated[str, typer.Option("--as", metavar="AET", help="Our AE title.")] = "COVARIANCE-SEND",
    tls: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Send over TLS; who may sign the peer's certificate.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Our certificate, with --tls.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    server_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in the peer's certificate, if not the host.")
    ] = None,
) -> None:
    """Send DICOM files by C-STORE, as a modality does. Exit code 1 if one was not stored."""
    from deploy.send import send_paths
    from dicom_node.tls import ClientTls
    from worker.settings import load_settings

    settings = load_settings()
    node, secure = settings.node, None
    if tls is not None:
        secure = ClientTls(authorities=tls, certificate=certificate, key=key, server_name=server_name)
    port = node.port if secure is None else settings.tls.port
    target = to or f"{node.host}:{port}/{node.ae_title}"
    raise typer.Exit(send_paths(paths, target, calling_ae=calling, tls=secure))
