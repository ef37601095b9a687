"""`make load`: a hundred senders at once, a burst of 1,000 studies, then two days of a large hospital.

10,000 studies in all go through the whole stack at full speed. Nothing that was allowed may be refused,
nothing lost, and memory and descriptors of every process stay flat. Not a test: it takes half an hour.
Writes `build/load.json` and `build/load.png`, and exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.end_to_end import committed, stack
from tests.bench.measure import Figures, wait_until
from tests.load.picture import draw
from tests.load.sender import Sender
from tests.load.watch import Watch

RESULT, PICTURE = Path("build/load.json"), Path("build/load.png")
QUIET_SECONDS = 300.0


def main() -> int:
    """Run, print, write, and say whether every promise was kept."""
    options = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    options.add_argument("--studies", type=int, default=10_000, help="in all, at least 300")
    options.add_argument("--burst", type=int, default=1000, help="of them, as fast as the node takes them")
    options.add_argument("--associations", type=int, default=100, help="open at the same time")
    asked = options.parse_args()
    RESULT.parent.mkdir(exist_ok=True)
    figures, console = Figures(), Console(width=110)
    with tempfile.TemporaryDirectory(prefix="load-", dir=RESULT.parent.resolve()) as folder:
        broken = _run(asked, Path(folder), figures, console)
    figures.write(RESULT)
    for sentence in broken:
        console.print(f"[bold red]Broken:[/] {sentence}")
    console.print(
        f"{'Every promise was kept' if not broken else 'Promises were broken'}; see {RESULT} and {PICTURE}."
    )
    return 1 if broken else 0


def _run(asked: argparse.Namespace, folder: Path, figures: Figures, console: Console) -> list[str]:
    with (
        stack(folder, forget=True) as system,
        Watch(system.processes, lambda: committed(system.ledger)) as watch,
    ):
        sender = Sender(system.port, folder / "films")
        sender.send(2, lanes=1)  # the engine is warm
        wait_until(lambda: committed(system.ledger) == 2, seconds=120, what="the first studies are committed")

        started = time.monotonic()
        sender.send_at_once(asked.associations)
        figures.add("load.at_once.associations", "associations", [asked.associations])
        figures.add("load.at_once.seconds", "s", [time.monotonic() - started])

        started = time.monotonic()
        sender.send(asked.burst, lanes=8)
        figures.add("load.burst.received", "studies/s", [asked.burst / (time.monotonic() - started)])

        with console.status("The day ...") as status:
            rest = asked.studies - len(sender.acknowledged)
            day = time.monotonic()
            # So many wait at most as a PACS would keep back for a worker that is busy.
            for _ in range(0, max(rest, 0), 50):
                sender.send(50, lanes=4)
                wait_until(
                    lambda: len(sender.acknowledged) - committed(system.ledger) < 2 * asked.burst,
                    seconds=QUIET_SECONDS,
                    what="the backlog shrinks",
                    pause=0.5,
                )
                status.update(f"The day: {committed(system.ledger)} of {asked.studies} committed")
            wanted = len(sender.acknowledged)
            wait_until(
                lambda: committed(system.ledger) >= wanted, seconds=3600, what="all is committed", pause=1.0
            )
            figures.add("load.studies", "studies", [wanted])
            figures.add("load.rate", "studies/s", [wanted / (time.monotonic() - started)])
            figures.add("load.day.seconds", "s", [time.monotonic() - day])
        time.sleep(3)  # the outbox is emptied
        broken = [*sender.broken, *_books(system, sender, folder)]
    return broken + _told(watch, figures, console)


def _books(system: object, sender: Sender, folder: Path) -> list[str]:
    """What was acknowledged against what the ledger, the PACS and the disk say."""
    ledger = system.ledger  # type: ignore[attr-defined]
    known, broken = ledger.status(), []
    scored = known.images.get("scored", 0)
    if scored != len(sender.acknowledged):
        broken.append(f"{len(sender.acknowledged)} images were acknowledged and {scored} are scored")
    at_pacs = len(list((folder / "pacs").glob("*/*.dcm")))
    if at_pacs != 2 * len(sender.acknowledged):
        broken.append(f"the PACS holds {at_pacs} objects for {len(sender.acknowledged)} studies")
    left = [*(folder / "spool" / "incoming").iterdir(), *(folder / "spool" / "outbox").glob("*/*")]
    if left:
        broken.append(f"{len(left)} files were left in incoming and outbox")
    if not (walk := ledger.verify()).ok:
        broken.append(walk.sentence)
    return broken


def _told(watch: Watch, figures: Figures, console: Console) -> list[str]:
    table = Table("process", "MB at a quarter", "MB at the end", "descriptors", "at the end", box=None)
    draw(watch.looks, PICTURE)
    found = watch.found()
    broken = [f"{name} was not seen long enough to know its memory" for name in watch.names - found.keys()]
    for name, one in found.items():
        table.add_row(name, *(f"{value:.0f}" for value in (*one.megabytes, *one.descriptors)))
        for label, unit, values in (("memory", "MB", one.megabytes), ("descriptors", "", one.descriptors)):
            figures.add(f"load.{label}.{name}", unit, values)
        if one.megabytes[1] > 1.2 * one.megabytes[0] + 30:
            broken.append(
                f"the memory of {name} grew from {one.megabytes[0]:.0f} to {one.megabytes[1]:.0f} MB"
            )
        if one.descriptors[1] > one.descriptors[0] + 20:
            broken.append(f"the descriptors of {name} grew from {one.descriptors[0]} to {one.descriptors[1]}")
    console.print(table)
    for name in ("load.studies", "load.rate", "load.burst.received", "load.at_once.seconds"):
        console.print(f"{name:24} {figures.found[name]['value']:>10} {figures.found[name]['unit']}")
    return broken


sys.exit(main())
