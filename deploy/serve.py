"""The processes of the stack as they are started by themselves: `covariance node`, `worker`, `deliver`."""

from __future__ import annotations

import signal
import sys

from deploy.stack import announce_ready, die_with_parent, stopped_by
from dicom_node import failpoints, tracing
from dicom_node.logs import configure_logs
from worker.settings import Settings, load_settings


def serve_node(ready_fd: int | None) -> None:
    """Receive until SIGTERM or SIGINT."""
    settings = _begin(ready_fd, "node")
    _leave_out("numpy", "PIL", "requests", "opentelemetry")
    from dicom_node.main import run_node  # noqa: PLC0415 (each process loads only what it runs)

    run_node(settings, ready=lambda _port: announce_ready(ready_fd), read=load_settings)


def serve_worker(ready_fd: int | None) -> int:
    """Score until SIGTERM, SIGINT or `drain`; return the exit code."""
    settings = _begin(ready_fd, "worker")
    from celery.signals import worker_ready  # noqa: PLC0415

    from worker.app import run_worker  # noqa: PLC0415

    worker_ready.connect(lambda **_: announce_ready(ready_fd), weak=False)
    return run_worker(settings)


def serve_deliver(ready_fd: int | None) -> None:
    """Deliver until SIGTERM or SIGINT."""
    settings = _begin(ready_fd, "deliver")
    from worker.office import run_deliver  # noqa: PLC0415

    with stopped_by(signal.SIGTERM, signal.SIGINT) as stop:
        announce_ready(ready_fd)
        run_deliver(settings, stop)


def _leave_out(*packages: str) -> None:
    """Have libraries do without what they load where it is installed, as in the image of the node.

    Of pydicom the node takes headers alone, and it never goes by HTTP: what pixels and downloads need
    is a quarter of its memory. What is in use already (tracing) stays.
    """
    for package in packages:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # import then finds nothing


def _begin(ready_fd: int | None, process: str) -> Settings:
    if ready_fd is not None:
        die_with_parent()
    settings = load_settings()
    configure_logs(level=settings.log.level, style=settings.log.style)
    failpoints.arm()
    tracing.start(settings.tracing, process)
    return settings
