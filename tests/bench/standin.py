"""The stand-in PACS as a process of its own: `python -m tests.bench.standin FOLDER PORT NODE_PORT`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from deploy.pacs import StandInPacs

folder, port, node_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(exist_ok=True)
with StandInPacs(folder, port=port, peers={"COVARIANCE": ("127.0.0.1", node_port)}):
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
