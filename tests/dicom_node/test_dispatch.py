from __future__ import annotations

import socket

import pytest
import redis
from kombu import Connection

from dicom_node.dispatch import QUEUES, SCORE_STUDY, Dispatcher, Word, celery_app
from dicom_node.lanes import Lane
from dicom_node.settings import NodeSettings
from tests.dicom_node.build import eventually


def settings_for(path: str) -> NodeSettings:
    return NodeSettings(queue={"url": f"redis+socket://{path}", "prefix": "t:"})


def test_rings_with_the_study_and_nothing_else(broker: str) -> None:
    """One message a ring, under our prefix, on the queue of the workers."""
    dispatcher = Dispatcher(settings_for(broker))
    assert dispatcher.ring("1.2.3")
    assert dispatcher.depth() == 1
    (message,) = redis.Redis(unix_socket_path=broker).lrange(f"t:{QUEUES[Lane.ROUTINE]}", 0, -1)
    assert SCORE_STUDY.encode() in message
    dispatcher.close()


def test_each_lane_has_a_queue_of_its_own(broker: str) -> None:
    """A ring is counted in its lane, and in no other."""
    dispatcher = Dispatcher(settings_for(broker))
    for number, lane in enumerate(Lane, start=1):
        for _ in range(number):
            assert dispatcher.ring("1.2.3", lane)
    assert dispatcher.depths() == {Lane.STAT: 1, Lane.ROUTINE: 2, Lane.BACKFILL: 3}
    assert dispatcher.depth() == 6
    dispatcher.close()


def test_a_worker_hears_the_study(broker: str) -> None:
    """What is rung arrives at a consumer of the same application with the study as its only argument."""
    settings = settings_for(broker)
    assert Dispatcher(settings).ring("1.2.3")
    with celery_app(settings).connection_for_read() as connection:
        message = connection.SimpleQueue(QUEUES[Lane.ROUTINE]).get(timeout=10)
        assert message.payload[:2] == [["1.2.3"], {}]
        message.ack()


def test_a_broker_that_is_away_costs_nothing_but_the_ring() -> None:
    """Without a broker ringing is False, at once and without an exception."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dispatcher = Dispatcher(
            NodeSettings(queue={"url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
        )
        assert dispatcher.ring("1.2.3") is False
        assert dispatcher.depth() is None


def test_a_broker_that_is_silent_does_not_hold_the_ringer() -> None:
    """A broker that accepts and says nothing is given up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dispatcher = Dispatcher(
            NodeSettings(queue={"url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
        )
        assert dispatcher.ring("1.2.3") is False


def test_rings_again_when_the_broker_is_back(broker: str) -> None:
    """After a loss the next ring connects anew."""
    dispatcher = Dispatcher(settings_for(broker))
    assert dispatcher.ring("1.2.3")
    redis.Redis(unix_socket_path=broker).client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: dispatcher.ring("1.2.4"))
    dispatcher.close()


class Refusing:
    """In place of the way to a connection: there is none, and each try is counted."""

    def __init__(self) -> None:
        self.tries = 0

    def __call__(self) -> Connection:
        self.tries += 1
        raise OSError


def test_a_broker_that_is_away_is_tried_once_for_many_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a ring that found nobody finds that out without asking; who wants to know still asks."""
    dispatcher, refusing = Dispatcher(NodeSettings()), Refusing()
    monkeypatch.setattr(dispatcher, "_connected", refusing)
    assert not any(dispatcher.ring(f"1.2.{number}") for number in range(1000))
    dispatcher.tell(Word.RECORDED)
    assert refusing.tries == 1
    assert dispatcher.depths() is None
    assert refusing.tries == 2


def test_who_finds_the_broker_back_ends_the_silence(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reconciler asks for the depth before it rings: then the first ring is heard."""
    dispatcher = Dispatcher(settings_for(broker))
    with monkeypatch.context() as away:
        away.setattr(dispatcher, "_connected", Refusing())
        assert not dispatcher.ring("1.2.3")
    assert not dispatcher.ring("1.2.3")
    assert dispatcher.depth() == 0
    assert dispatcher.ring("1.2.3")
    dispatcher.close()


def test_a_worker_that_dies_leaves_the_message() -> None:
    """The settings that reliability rests on."""
    conf = celery_app(NodeSettings()).conf
    assert conf.task_acks_late
    assert not conf.task_reject_on_worker_lost
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]
    assert conf.broker_transport_options["visibility_timeout"] == 900
    assert conf.broker_transport_options["socket_timeout"] == 30
