"""Whether the process of a container does its work: asked by `HEALTHCHECK` and by Kubernetes' probes.

It says whether work could be given to it, not whether it should be started again: a worker without a broker
is not ready, and starting it again would mend nothing.
"""

from __future__ import annotations

import socket
from typing import Literal

from dicom_node.errors import Retryable
from dicom_node.store_scu import Peer, echo
from worker.settings import Settings

Process = Literal["node", "worker", "deliver"]

_SECONDS = 5.0
_TITLE = "HEALTH"


def ask(settings: Settings, process: Process) -> str:
    """Say in a few words that a process on this machine can work.

    Raises:
        CovarianceError: it cannot; the sentence says what is missing.
    """
    return {"node": _node, "worker": _worker, "deliver": _ledger}[process](settings)


def _node(settings: Settings) -> str:
    node = settings.node
    host = "127.0.0.1" if node.host == "0.0.0.0" else node.host  # noqa: S104 (compared, not bound)
    if node.plain and not node.callers and not node.allowed_callers:
        echo(Peer(ae_title=node.ae_title, host=host, port=node.port, calling_ae=_TITLE, timeout=_SECONDS))
        return f"{node.ae_title} answers C-ECHO"
    # Its log is to tell of callers who were rejected, not of us twice a minute.
    port = node.port if node.plain else settings.tls.port
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise Retryable(f"Nothing listens on port {port}: {error.strerror or 'no answer'}.") from None
    return f"port {port} is open"


def _worker(settings: Settings) -> str:
    from dicom_node.dispatch import celery_app  # noqa: PLC0415 (the node's check needs no Celery)

    ledger = _ledger(settings)
    mine = f"covariance@{socket.gethostname()}:*"
    try:
        with celery_app(settings).connection_for_write(connect_timeout=_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, timeout=_SECONDS)
            inspect = celery_app(settings).control.inspect(
                connection=connection, timeout=_SECONDS, limit=1, pattern=mine, matcher="glob"
            )
            answers = inspect.ping()
    except Exception as error:  # noqa: BLE001 (kombu has as many errors as transports)
        raise Retryable(f"The broker does not answer ({type(error).__name__}).") from None
    if not answers:
        raise Retryable("No worker of this machine answers on the queue.")
    return f"hears the queue, {ledger}"


def _ledger(settings: Settings) -> str:
    from worker.ledger import open_ledger  # noqa: PLC0415 (the image of the node has no database)

    open_ledger(settings, migrate=False).close()
    return "the database answers with this version's schema"
