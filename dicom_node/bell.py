"""A second doorbell, between our own processes: who waits for something hears that it was done.

It says nothing but a word, over the broker's publish and subscribe. Nobody relies on it: who hears no
bell looks all the same, a little later.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from dicom_node.dispatch import BELL, IMPATIENT, celery_app
from dicom_node.logs import get_logger
from dicom_node.settings import NodeSettings

log = get_logger("bell")

_LISTEN_SECONDS = 1.0
_AWAY_SECONDS = 5.0
"""Pause before a broker that is away is tried again."""


class BellListener:
    """Hears the words of all processes of the installation."""

    def __init__(self, settings: NodeSettings, bells: Mapping[str, Sequence[threading.Event]]) -> None:
        self._app = celery_app(settings)
        self._bells = bells

    def listen(self, stop: threading.Event) -> None:
        """Set the bells of each word that is heard, until `stop` is set, and then all of them."""
        while not stop.is_set():
            try:
                self._listen(stop)
            except Exception as error:  # noqa: BLE001 (whatever it is, the deliverer must not go deaf for good)
                log.warning("bell_not_heard", error=type(error).__name__)
                stop.wait(_AWAY_SECONDS)
        for word in self._bells:
            self._ring(word)

    def _listen(self, stop: threading.Event) -> None:
        options = {**self._app.conf.broker_transport_options, **IMPATIENT}
        connecting = self._app.connection_for_read(
            transport_options=options, connect_timeout=IMPATIENT["socket_connect_timeout"]
        )
        with (
            connecting as connection,
            connection.default_channel.client.pubsub(ignore_subscribe_messages=True) as subscription,
        ):
            subscription.subscribe(BELL)
            while not stop.is_set():
                message = subscription.get_message(timeout=_LISTEN_SECONDS)
                word = message["data"].decode("ascii", "replace") if message else ""
                self._ring(word)

    def _ring(self, word: str) -> None:
        for bell in self._bells.get(word, ()):
            bell.set()
