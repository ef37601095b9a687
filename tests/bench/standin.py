"""The stand-in PACS as a process: `python -m tests.bench.standin FOLDER PORT NODE_PORT [--forget]`.

With `--forget` it keeps the names of objects and not their bytes, so that days of results fit on a disk.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pynetdicom import evt

from deploy.pacs import StandInPacs


class Forgetful(StandInPacs):
    """Writes each object as an archive does, and then lets its bytes go."""

    def _store(self, event: evt.Event) -> int:
        status = super()._store(event)
        for held in self.held(str(event.dataset.StudyInstanceUID)):
            os.truncate(held.path, 0)
        return status


folder, port, node_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(exist_ok=True)
kind = Forgetful if "--forget" in sys.argv else StandInPacs
with kind(folder, port=port, peers={"COVARIANCE": ("127.0.0.1", node_port)}):
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
