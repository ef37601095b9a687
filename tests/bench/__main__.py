"""`make bench`: measure, print, and write `build/bench.json`. Not a test: machines differ, ratios hold.

With names (`make bench ARGS="engine sender"`) only these parts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import end_to_end, engine, ingest, instead, secure, sender, stations
from tests.bench.measure import Figures

RESULT = Path("build/bench.json")


def main() -> None:
    console, figures, named = Console(width=100), Figures(), sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=_on_disk()) as work:
        for title, station in (
            ("Receiving", ingest),
            ("Receiving over TLS", secure),
            ("Sending", sender),
            ("The engine alone", engine),
            ("The stations alone", stations),
            ("The whole way", end_to_end),
            ("What one would write instead", instead),
        ):
            if named and station.__name__.rpartition(".")[2] not in named:
                continue
            with console.status(f"{title} ..."):
                station.run(figures, Path(work))
    if not named:
        stations.ratio(figures)
    table = Table("figure", "median", "low", "high", "unit")
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for name, one in figures.found.items():
        table.add_row(name, *(f"{one[key]:.2f}" for key in ("value", "low", "high")), str(one["unit"]))
    console.print(table)
    figures.write(RESULT)
    console.print(f"Written to {RESULT}.")


def _on_disk() -> Path:
    # Not /tmp: it may be memory, where an fsync costs nothing.
    folder = RESULT.parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


main()
