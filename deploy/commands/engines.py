"""`covariance engine` and `gpu-check`: what runs the network, built and measured before it serves."""

from __future__ import annotations

from typing import Annotated

import typer

engine = typer.Typer(no_args_is_help=True, help="What runs the network on this machine.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(engine, name="engine", rich_help_panel="Set up")
    app.command("gpu-check", rich_help_panel="Set up")(gpu_check)


@engine.command()
def build() -> None:
    """Build the engine of the settings for this machine into its cache, and let it pass the parity gate.

    A worker does the same at its first start; on a GPU that takes minutes.
    """
    from deploy.gpu_check import build_engine
    from worker.settings import load_settings

    build_engine(load_settings())


def gpu_check(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each batch size.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build, check and measure every engine that runs here. Exit code 1 unless one ran on a GPU."""
    from deploy.gpu_check import check_engines
    from worker.settings import load_settings

    raise typer.Exit(check_engines(load_settings(), seconds=seconds, as_json=as_json))
