"""Words between our own processes."""

from __future__ import annotations

import threading

import pytest
import redis

from dicom_node.bell import BellListener
from dicom_node.dispatch import Dispatcher, Word
from dicom_node.settings import NodeSettings
from tests.dicom_node.build import eventually


def test_a_word_is_heard_by_those_that_wait_for_it(broker: str) -> None:
    """By all of them, and by nobody who waits for another; the end wakes everybody."""
    settings = NodeSettings(queue={"url": f"redis+socket://{broker}", "prefix": "t:"})
    recorded, also, reported = threading.Event(), threading.Event(), threading.Event()
    bells = {"recorded": [recorded, also], "reported": [reported]}
    stop = threading.Event()
    listening = threading.Thread(target=BellListener(settings, bells).listen, args=(stop,))
    listening.start()
    client = redis.Redis(unix_socket_path=broker)
    eventually(lambda: dict(client.pubsub_numsub("t:bell"))[b"t:bell"] == 1)
    client.publish("t:bell", "no word of ours")
    Dispatcher(settings).tell(Word.RECORDED)
    eventually(lambda: recorded.is_set() and also.is_set())
    assert not reported.is_set()
    stop.set()
    listening.join()
    assert reported.is_set()


def test_nobody_waits_for_a_broker_that_is_away() -> None:
    """Telling ends without an error, and listening with `stop`."""
    settings = NodeSettings(queue={"url": "redis://127.0.0.1:1/0"})
    Dispatcher(settings).tell(Word.REPORTED)
    stop, bell = threading.Event(), threading.Event()
    listening = threading.Thread(target=BellListener(settings, {"reported": [bell]}).listen, args=(stop,))
    listening.start()
    stop.set()
    listening.join()
    assert bell.is_set()


def test_a_listener_goes_on_after_whatever_happened(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that fails in a way of its own costs a pause, and not the hearing."""
    settings = NodeSettings(queue={"url": f"redis+socket://{broker}", "prefix": "t:"})
    stop, bell = threading.Event(), threading.Event()
    listener = BellListener(settings, {"recorded": [bell]})
    listen, failures = listener._listen, ["pubsub connection not set"]

    def fail_once(until: threading.Event) -> None:
        if failures:
            raise RuntimeError(failures.pop())
        listen(until)

    monkeypatch.setattr(listener, "_listen", fail_once)
    monkeypatch.setattr("dicom_node.bell._AWAY_SECONDS", 0.01)
    listening = threading.Thread(target=listener.listen, args=(stop,))
    listening.start()
    client = redis.Redis(unix_socket_path=broker)
    eventually(lambda: dict(client.pubsub_numsub("t:bell"))[b"t:bell"] == 1)
    Dispatcher(settings).tell(Word.RECORDED)
    eventually(bell.is_set)
    stop.set()
    listening.join()
