"""Takes up callers and certificates when their files change, while associations go on."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from dicom_node.settings import NodeSettings, settings_file

log = get_logger("reload")

_LOOK_SECONDS = 2.0

Stamp = tuple[int, int, int] | None


class Reloader:
    """A thread that looks at the files now and then, and at once where it is asked to.

    Files that cannot be used leave in force what was there before.
    """

    def __init__(
        self,
        settings: NodeSettings,
        read: Callable[[], NodeSettings],
        take_up: Callable[[NodeSettings], None],
        *,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Prepare, without looking.

        Args:
            settings: what is in force.
            read: reads the settings once more. Raises `ConfigurationError`.
            take_up: puts them in force. Raises `ConfigurationError`.
            look_seconds: pause between two looks.
        """
        self._settings = settings
        self._read = read
        self._take_up = take_up
        self._look_seconds = look_seconds
        self._stamps = self._stamp()
        # True to read, False to end. A SimpleQueue may be filled by a signal handler.
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reload")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._asked.put(False)
        self._thread.join()

    def ask(self) -> None:
        """Read the files now, changed or not."""
        self._asked.put(True)

    def _run(self) -> None:
        while True:
            asked = None
            with contextlib.suppress(queue.Empty):
                asked = self._asked.get(timeout=self._look_seconds)
            if asked is False:
                return
            self.look(asked=bool(asked))

    def look(self, *, asked: bool = False) -> None:
        """Read the files if they have changed since the last look, or in any case where that is asked for."""
        stamps = self._stamp()
        if stamps == self._stamps and not asked:
            return
        # Taken before the files are read: what changes in between is seen at the next look.
        self._stamps = stamps
        try:
            settings = self._read()
            self._take_up(settings)
        except ConfigurationError as error:
            log.error("access_not_reloaded", why=str(error))
            return
        self._settings = settings
        log.info("access_reloaded")

    def _stamp(self) -> dict[Path, Stamp]:
        tls = self._settings.tls
        files = [settings_file()]
        if tls.enabled:
            files += [tls.certificate, tls.key, tls.authorities, tls.crl]
        return {file: _stamp(file) for file in files if file is not None}


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
