"""`covariance drain`: have all workers finish what they have and end, as before an upgrade."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from deploy import broker
from dicom_node.dispatch import Dispatcher, celery_app
from dicom_node.errors import Retryable
from dicom_node.logs import configure_logs
from worker.drain import DRAIN
from worker.ledger import open_ledger
from worker.settings import Settings

_HEAR_SECONDS = 3.0
_PREFIX = "covariance@"


def drain_workers(settings: Settings, *, restart: bool, patience: float) -> int:
    """Drain every worker that hears the broker, and wait until each is gone; return the exit code.

    Raises:
        Retryable: the broker does not answer.
    """
    configure_logs(level="ERROR")
    console = Console(highlight=False, soft_wrap=True)
    settings = broker.reachable(settings)
    if Dispatcher(settings).depth() is None:
        raise Retryable("The broker does not answer: end each worker with SIGTERM, which does the same.")
    control = celery_app(settings).control
    try:
        replies = control.broadcast(
            DRAIN, arguments={"stay_down": not restart}, reply=True, timeout=_HEAR_SECONDS
        )
    except Exception as error:  # noqa: BLE001 (kombu has as many errors as transports)
        raise Retryable(f"The broker went away ({type(error).__name__}): run it again.") from None
    told = sorted(name for reply in replies or [] for name in reply)
    if not told:
        console.print("No worker hears the broker: none runs, or its thread is busy; look at `status`.")
        return 1
    console.print(f"{len(told)} workers finish what they have: {', '.join(told)}.")
    owners = [name.removeprefix(_PREFIX) for name in told]
    deadline = time.monotonic() + patience
    with open_ledger(settings, migrate=False) as ledger:
        while True:
            answering = _answering(control, told)
            claims = ledger.claimed_by(owners)
            if answering == 0 and not claims:
                console.print("All have ended. What is ready waits in the ledger for the next worker.")
                return 0
            if time.monotonic() > deadline:
                heard = "the broker does not answer" if answering is None else f"{answering} workers answer"
                console.print(f"{claims} studies are still being scored, {heard}.")
                return 1
            time.sleep(0.2)


def _answering(control: Any, told: Sequence[str]) -> int | None:
    """How many of these workers still answer; None while the broker does not, which may come back."""
    try:
        return len({name for reply in control.ping(destination=told, timeout=1.0) for name in reply})
    except Exception:  # noqa: BLE001 (kombu has as many errors as transports)
        return None
