"""Counts who was refused, and hands over what was counted once a minute. A flood costs it nothing more.

What is counted is in memory until its window is written: a node that is killed takes up to a minute of it
along. Every refusal stands in the log, too.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from dicom_node.durable import SpoolFull
from dicom_node.logs import get_logger
from dicom_node.refusals import MOST_REFUSALS, Refusal, RefusalWindow, Refused, window_name

log = get_logger("doorman")

_WINDOW_SECONDS = 60.0
_TITLES_FROM_THERE = 8
"""Pairs of titles that one address may call itself and us in a window; more are counted without titles, so
that who makes up titles does not hide the others."""
_NO_TITLE = re.compile(r"[^\x20-\x5b\x5d-\x7e]")
_NO_ADDRESS = re.compile(r"[^\x21-\x7e]")

Key = tuple[Refused, str, str, str]
"""Reason, address, calling and called AE title."""


class _Tally:
    """What was counted since it was opened: a bounded number of keys, and the rest by reason."""

    def __init__(self) -> None:
        self._opened = datetime.now(UTC)
        self._counts: Counter[Key] = Counter()
        self._titles: Counter[tuple[Refused, str]] = Counter()
        self._others: Counter[Refused] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def count(self, key: Key) -> None:
        reason, address, *_ = key
        if key not in self._counts and self._titles[reason, address] >= _TITLES_FROM_THERE:
            key = (reason, address, "", "")
        if key in self._counts or len(self._counts) < MOST_REFUSALS:
            if key not in self._counts:
                self._titles[reason, address] += 1
            self._counts[key] += 1
        else:
            self._others[reason] += 1

    def window(self) -> RefusalWindow:
        return RefusalWindow(
            name=window_name(self._opened, secrets.token_hex(8)),
            since=self._opened,
            until=datetime.now(UTC),
            refusals=tuple(
                Refusal(reason=reason, address=address, calling_ae=calling, called_ae=called, count=count)
                for (reason, address, calling, called), count in self._counts.most_common()
            ),
            others=dict(self._others),
        )


class Doorman:
    """Hears of every refusal, in the thread of the peer; writes windows in a thread of its own."""

    def __init__(self, keep: Callable[[RefusalWindow], None], *, seconds: float = _WINDOW_SECONDS) -> None:
        """Prepare, without writing.

        Args:
            keep: keeps a window durably (`Refusals.keep`). Raises `SpoolFull`, `OSError`.
            seconds: length of a window.
        """
        self._keep = keep
        self._seconds = seconds
        self._tally = _Tally()
        self._counting = threading.Lock()
        self._unwritten: RefusalWindow | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def refused(self, reason: Refused, address: str, *, calling_ae: str = "", called_ae: str = "") -> None:
        """Count one refusal. What a stranger calls itself is cut to what an AE title may be."""
        key = (reason, _address(address), _title(calling_ae), _title(called_ae))
        with self._counting:
            self._tally.count(key)

    def start(self) -> None:
        """Begin to write windows."""
        self._thread = threading.Thread(target=self._run, name="doorman")
        self._thread.start()

    def stop(self) -> None:
        """Write what was counted, and end the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        while self.close_window():
            pass

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self.close_window()

    def close_window(self) -> bool:
        """Write what was counted; whether something was written.

        A window that cannot be written is tried again, under its name, before the next is closed: what is
        counted meanwhile goes into that one, and nothing grows.
        """
        with self._counting:
            if self._unwritten is None and self._tally:
                self._unwritten, self._tally = self._tally.window(), _Tally()
            window = self._unwritten
        if window is None:
            return False
        try:
            self._keep(window)
        except (SpoolFull, OSError) as error:
            log.error("refusals_not_kept", count=window.count, error=type(error).__name__)
            return False
        self._unwritten = None
        return True


def _title(text: str) -> str:
    # The default character repertoire without the backslash (PS3.5 6.2, VR AE).
    return _NO_TITLE.sub("?", text)[:16].strip()


def _address(text: str) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return _NO_ADDRESS.sub("?", text)[:64] or "?"
    return str(getattr(found, "ipv4_mapped", None) or found)
