"""`migrate`, `health` and `capacity`: what a platform runs beside the processes, and how large it must be."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class EngineKind(StrEnum):
    """What the model runs on."""

    CPU = "cpu"
    CPU_WITHOUT_BF16 = "cpu-avx2"
    GPU = "gpu"


class Process(StrEnum):
    """The processes of the stack."""

    NODE = "node"
    WORKER = "worker"
    DELIVER = "deliver"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Set up")(migrate)
    app.command(rich_help_panel="Serve")(health)
    app.command(rich_help_panel="Set up")(capacity)


def migrate(
    all_stopped: Annotated[
        bool,
        typer.Option(
            "--all-stopped", help="Every process is stopped: take what older versions cannot work with, too."
        ),
    ] = False,
) -> None:
    """Bring the database to the schema of this version, while others run; running it again does nothing."""
    from worker.ledger import open_ledger
    from worker.settings import load_settings

    with open_ledger(load_settings(), migrate=True, all_stopped=all_stopped) as ledger:
        schema = ledger.schema()
    if schema.compatible:
        typer.echo(f"The database is at {schema.found}, of a newer version; this one works with it.")
    else:
        typer.echo("The database has this version's schema.")


def health(
    process: Annotated[Process, typer.Argument(help="Which process of this machine.")],
) -> None:
    """Say whether a process on this machine can work. Exit code 1 if it cannot now."""
    from deploy.health import ask
    from worker.settings import load_settings

    typer.echo(f"{process.value}: {ask(load_settings(), process.value)}")


def capacity(
    studies_per_day: Annotated[float, typer.Option(help="Studies that come in a day.")],
    *,
    films: Annotated[float, typer.Option(help="Films of a study, on average.")] = 1.5,
    megabytes: Annotated[float, typer.Option(help="Size of a film as it is sent.")] = 10.0,
    peak_share: Annotated[
        float, typer.Option(help="Share of the day's studies that come in its busiest hour.")
    ] = 0.12,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long 19 of 20 may wait for a worker at the most.")
    ] = 10.0,
    engine: Annotated[EngineKind, typer.Option(help="What the model runs on.")] = EngineKind.CPU,
) -> None:
    """Say what machines a number of studies a day needs, from the benchmark and the settings' keep_days."""
    from deploy.capacity import Demand, Engine, print_plan
    from worker.settings import load_settings

    demand = Demand(
        studies_per_day=studies_per_day,
        films_per_study=films,
        film_megabytes=megabytes,
        peak_share=peak_share,
        keep_days=load_settings().retention.keep_days,
        wait_seconds=wait,
    )
    print_plan(demand, Engine(engine.value))
