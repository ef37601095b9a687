"""`make newcomer`: from a fresh clone, with empty caches, to results in a real Orthanc, and how long it took.

What a newcomer does is one command, `make demo PACS=...`, in a clone of what is committed here. Home, pip's
and uv's caches are empty folders, so that everything is fetched as on the first day. The hospital's part, an
Orthanc that knows the node, is there before the clock starts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from tests.integration.system import Orthanc, Program, free_port, orthanc_configuration

ROOT = Path(__file__).parent.parent.parent
CONSOLE = Console(highlight=False)
RESULT = ROOT / "build" / "newcomer.json"
MARK = 300
"""Seconds; the reading is of this machine and this network, so that it is printed and no failure."""


def main() -> int:
    program = shutil.which("Orthanc")
    if program is None:
        CONSOLE.print("There is no Orthanc to send to: apt-get install orthanc.")
        return 2
    with tempfile.TemporaryDirectory(prefix="covariance-newcomer-") as name:
        folder = Path(name)
        node_port = free_port()
        orthanc = _orthanc(folder, program, node_port)
        orthanc.start()
        try:
            started = time.monotonic()
            clone = folder / "covariance"
            subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
            _demo(clone, folder / "home", f"127.0.0.1:{orthanc.port}/{orthanc.ae_title}", node_port)
            seconds = time.monotonic() - started
            results = _results(orthanc)
        finally:
            orthanc.program.stop()
    CONSOLE.print(f"{seconds:.0f} s from the clone to results in Orthanc (mark: {MARK} s).")
    CONSOLE.print(
        f"Of {sum(results.values())} studies {results['SR+OT']} hold a report and a heatmap there, "
        f"{results['SR']} a report that says why not.",
        soft_wrap=True,
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"seconds": round(seconds, 1), "studies": results}, indent=2) + "\n")
    complete = results["SR+OT"] > 0 and set(results) <= {"SR+OT", "SR"}
    return 0 if complete else 1


def _orthanc(folder: Path, program: str, node_port: int) -> Orthanc:
    port, http_port = free_port(), free_port()
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(orthanc_configuration(folder, port, http_port, node_port)))
    return Orthanc(port, http_port, Program([program, str(configuration)], folder / "orthanc.log"))


def _demo(clone: Path, home: Path, pacs: str, node_port: int) -> None:
    """Run the one command as somebody who has nothing yet; only how to reach a package index is kept."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name.lower().startswith(_OF_THE_NETWORK)}
    environment = {
        **kept,
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "COVARIANCE_NODE__PORT": str(node_port),
        "COVARIANCE_NODE__HOST": "127.0.0.1",
    }
    subprocess.run(["make", "demo", f"PACS={pacs}"], cwd=clone, env=environment, check=True)


_OF_THE_NETWORK = ("pip_", "uv_index", "uv_default", "uv_find", "ssl_", "http_", "https_", "no_proxy")


def _results(orthanc: Orthanc) -> Counter[str]:
    """How many studies hold which of our series, of each that the demo sent."""
    found: Counter[str] = Counter()
    for study in orthanc.rest("/studies"):
        series = [orthanc.rest(f"/series/{one}") for one in orthanc.rest(f"/studies/{study}")["Series"]]
        modalities = {one["MainDicomTags"]["Modality"] for one in series}
        found["+".join(kind for kind in ("SR", "OT") if kind in modalities) or "nothing"] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
