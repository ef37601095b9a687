"""Break everything, and ask what was lost: `python -m tests.chaos` (see `--help`)."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table

from dicom_node.logs import configure_logs
from tests.chaos import phases
from tests.chaos.run import Run
from tests.chaos.stack import make_stack

PHASES = ("quiet", "kill", "raise", "sleep", "alone", "kills", "frozen", "broker", "database")
SHORT = ("raise", "kills", "frozen", "broker")
console = Console(highlight=False, soft_wrap=True)


def perform(run: Run, *, short: bool, kills: int, outage: float, only: Collection[str] = ()) -> None:
    """The phases one after the other on one stack: all, or those that are named."""
    times, pause, down = (1, 1.0, 2.0) if short else (2, 2.0, 10.0)
    steps: dict[str, Callable[[], None]] = {
        "quiet": lambda: phases.quiet(run, 5.0 if short else 40.0),
        "kill": lambda: phases.failpoints(run, "kill"),
        "raise": lambda: phases.failpoints(run, "raise"),
        "sleep": lambda: phases.failpoints(run, "sleep:2"),
        "alone": lambda: phases.alone(run, times),
        "kills": lambda: phases.kills(run, kills, pause),
        "frozen": lambda: phases.frozen_worker(run, times),
        "broker": lambda: phases.broker(run, times, down),
        "database": lambda: phases.database(run, times, outage),
    }
    for name in only or (SHORT if short else steps):
        steps[name]()


def main(
    short: Annotated[bool, typer.Option(help="About a minute: a part of each phase.")] = False,
    kills: Annotated[int | None, typer.Option(help="Random SIGKILLs; else 200, or 10 with --short.")] = None,
    database: Annotated[Literal["sqlite", "postgresql"], typer.Option(help="The ledger.")] = "sqlite",
    pacs: Annotated[Literal["standin", "orthanc"], typer.Option(help="The destination.")] = "standin",
    outage: Annotated[float, typer.Option(help="Seconds without the database.", min=1.0)] = 120.0,
    only: Annotated[
        list[str] | None, typer.Option(help=f"These phases only, of {', '.join(PHASES)}.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random kills and films.")] = None,
    out: Annotated[Path, typer.Option(help="Where the summary is written.")] = Path("build/chaos.json"),
    table: Annotated[Path | None, typer.Option(help="Write the recovery times here, as Markdown.")] = None,
    keep: Annotated[bool, typer.Option(help="Keep logs, spool and database of a run that was well.")] = False,
) -> None:
    """Kill, stop, starve and empty a CoVariance of real processes, and ask the oracle what was lost."""
    configure_logs(level="ERROR")
    seed = random.randrange(2**32) if seed is None else seed
    if unknown := set(only or ()) - set(PHASES):
        raise typer.BadParameter(f"there is no phase {', '.join(sorted(unknown))}", param_hint="--only")
    number = kills if kills is not None else 10 if short else 200
    begun = time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.0f} s[/]  {line}")

    folder = Path(tempfile.mkdtemp(prefix="covariance-chaos-"))
    say(f"seed {seed}, {database}, {pacs}, files in {folder}")
    with Run(make_stack(folder, database=database, pacs=pacs), random.Random(seed), say) as run:
        try:
            perform(run, short=short, kills=number, outage=outage, only=only or ())
        except KeyboardInterrupt:
            run.violations.append("The run was interrupted.")
        summary = {**_circumstances(seed, database, pacs), "seconds": round(time.monotonic() - begun)}
        summary |= run.summary()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=2) + "\n")
    if not (keep or summary["violations"]):
        shutil.rmtree(folder)
    console.print(_shown(summary))
    for sentence in summary["violations"][:50]:
        console.print(f"[red]✗[/] {sentence}")
    if table is not None:
        table.write_text(as_markdown(summary))
    sys.exit(1 if summary["violations"] else 0)


def _circumstances(seed: int, database: str, pacs: str) -> dict[str, Any]:
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{psutil.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[2], 1),
        "arguments": sys.argv[1:],
        "seed": seed,
        "database": database,
        "pacs": pacs,
    }


def _shown(summary: dict[str, Any]) -> Table:
    title = f"{summary['sent']} images sent, {summary['lost']} lost, {summary['duplicated']} duplicated"
    shown = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("what was done", "times", "recovery s, median", "max"):
        shown.add_column(heading, justify="left" if heading == "what was done" else "right")
    for kind, one in summary["recovery_seconds"].items():
        shown.add_row(kind, str(one["times"]), str(one["median"]), str(one["max"]))
    return shown


def as_markdown(summary: dict[str, Any]) -> str:
    """The recovery times for people who run the system, with the command that made them."""
    lines = [
        "# How long a loss costs",
        "",
        "Written by `make chaos`, from one run "
        f"({summary['date']}, {summary['machine']}, load average {summary['load_average']}, "
        f"{summary['seconds'] // 60} minutes):",
        "",
        "```",
        " ".join([".venv/bin/python -m tests.chaos", *summary["arguments"]]),
        "```",
        "",
        f"{summary['sent']} images were sent until each had its 0x0000. **{summary['lost']} were lost, "
        f"{summary['duplicated']} duplicated**, and {len(summary['violations'])} other things were found.",
        "",
        "Recovery is the time from a loss until everything that had been sent before it was committed at the "
        "PACS, with eight films on their way. *nothing* is the same time without a loss. Most of what a dead "
        "process costs is its start. SQLite has no server: *SIGKILL database* is both processes that write.",
        "",
        "| what was done | times | recovery, median s | longest s |",
        "|---|---:|---:|---:|",
    ]
    for kind, one in summary["recovery_seconds"].items():
        lines.append(f"| {kind} | {one['times']} | {one['median']} | {one['max']} |")
    told = ", ".join(f"{kind} {times}" for kind, times in sorted(summary["done"].items()))
    lines += ["", f"Everything that was done to it, and how often: {told}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
