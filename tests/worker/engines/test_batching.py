"""One thread owns the device and batches what many hand it; a failure reaches those whom it concerns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError, Retryable
from worker.engines import DeviceLost
from worker.engines.batching import MicroBatcher
from worker.engines.buckets import BUCKETS, bucket_for, buckets_up_to
from worker.engines.openvino import OpenVinoEngine
from worker.findings import Inference
from worker.preprocess import to_batch
from worker.settings import WorkerSection


class Clerk:
    """An engine that writes down its batches: the logit of a film is its first pixel.

    It stands in for a device only where a test must decide when a batch begins and ends, or how it fails.
    """

    name, precision, batches = "clerk", "f32", (1, 2, 4)

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.closed = False

    def infer(self, pixels_B1HW) -> Inference:
        self.threads.add(threading.get_ident())
        self.seen.append([float(value) for value in pixels_B1HW[:, 0, 0, 0]])
        self.begun.release()
        self.go.wait(30)
        if self.error is not None:
            raise self.error
        return Inference(logits_B=pixels_B1HW[:, 0, 0, 0], cams_Bhw=pixels_B1HW[:, 0])

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


def films(*values: float) -> np.ndarray:
    return np.stack([np.full((1, 2, 2), value, np.float32) for value in values])


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


@pytest.fixture
def batcher(clerk):
    """Up to four films a batch, and no waiting."""
    made = MicroBatcher(lambda: clerk, max_batch=4, max_wait=0.0, callers=8)
    yield made
    clerk.go.set()
    made.close()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def hand_in(batcher, threads, *values):
    """Hand in one film a thread, and wait until they stand in line in that order."""
    handed = []
    for value in values:
        before = len(batcher._waiting)
        handed.append(threads.submit(batcher.infer, films(value)))
        deadline = time.monotonic() + 30
        while len(batcher._waiting) == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return handed


def occupy(batcher, clerk, threads):
    """Have one film in work until `clerk.go` is set."""
    clerk.go.clear()
    first = threads.submit(batcher.infer, films(0))
    assert clerk.begun.acquire(timeout=30)
    return first


def test_what_waits_goes_together(batcher, clerk, threads):
    """While the device works on one film, those that come gather, and go as full batches in their order."""
    first = occupy(batcher, clerk, threads)
    rest = hand_in(batcher, threads, 1, 2, 3, 4, 5)
    clerk.go.set()
    assert [float(one.result(30).logits_B[0]) for one in (first, *rest)] == [0, 1, 2, 3, 4, 5]
    assert clerk.seen == [[0], [1, 2, 3, 4], [5]]


def test_each_study_gets_its_own(batcher, clerk, threads):
    """Studies of several films are cut and joined into batches, and every thread gets its own films back."""
    studies = [films(*range(10 * number, 10 * number + 1 + number % 6)) for number in range(20)]
    found = list(threads.map(batcher.infer, studies))
    for study, one in zip(studies, found, strict=True):
        assert np.array_equal(one.logits_B, study[:, 0, 0, 0])
        assert np.array_equal(one.cams_Bhw, study[:, 0])
    assert max(len(batch) for batch in clerk.seen) <= 4


def test_one_thread_owns_the_device(clerk, threads):
    """The engine is opened, called and closed in one thread, which is none of the callers."""
    opened_in: list[int] = []

    def open_clerk() -> Clerk:
        opened_in.append(threading.get_ident())
        return clerk

    batcher = MicroBatcher(open_clerk, max_batch=4, max_wait=0.0, callers=8)
    list(threads.map(batcher.infer, [films(value) for value in range(20)]))
    batcher.close()
    assert clerk.closed
    assert clerk.threads == set(opened_in) != {threading.get_ident()}


def test_nobody_waits_for_a_caller_that_cannot_come(clerk, threads):
    """Once every thread that may call stands in line the batch goes, however long it might have waited."""
    batcher = MicroBatcher(lambda: clerk, max_batch=4, max_wait=3600.0, callers=2)
    both = [threads.submit(batcher.infer, films(value)) for value in (1, 2)]
    assert sorted(float(one.result(30).logits_B[0]) for one in both) == [1, 2]
    assert sorted(map(len, clerk.seen)) == [2]
    batcher.close()


def test_a_film_alone_waits_no_longer_than_it_should(clerk):
    """A film that nobody joins goes after `max_wait`."""
    batcher = MicroBatcher(lambda: clerk, max_batch=4, max_wait=0.05, callers=8)
    started = time.monotonic()
    assert batcher.infer(films(7)).logits_B[0] == 7
    assert 0.05 <= time.monotonic() - started < 30
    batcher.close()


def test_a_batch_that_fails_costs_only_its_films(batcher, clerk):
    """What the engine raises reaches the callers of that batch; the next one runs."""
    clerk.error = Retryable("no memory at this time")
    with pytest.raises(Retryable, match="no memory"):
        batcher.infer(films(1))
    clerk.error = None
    assert batcher.infer(films(2)).logits_B[0] == 2


def test_a_lost_device_is_lost_for_all(batcher, clerk, threads):
    """Those in work, those in line and those that come later all hear it at once, and nothing else runs."""
    first = occupy(batcher, clerk, threads)
    waiting = hand_in(batcher, threads, 1, 2, 3, 4, 5)
    clerk.error = DeviceLost("The GPU failed.")
    clerk.go.set()
    for one in (first, *waiting):
        with pytest.raises(DeviceLost):
            one.result(30)
    with pytest.raises(DeviceLost):
        batcher.infer(films(9))
    assert clerk.seen == [[0]]
    batcher.close()


def test_a_device_that_hangs_is_lost(clerk, threads):
    """A device that never answers holds up its callers for a bounded time, and `close` not at all."""
    batcher = MicroBatcher(lambda: clerk, max_batch=4, max_wait=0.0, callers=8, hung_seconds=0.2)
    first = occupy(batcher, clerk, threads)
    with pytest.raises(DeviceLost, match=r"not answered for 0\.2 s"):
        first.result(30)
    with pytest.raises(DeviceLost):
        batcher.infer(films(9))
    batcher.close()
    clerk.go.set()


def test_an_engine_that_does_not_open_is_refused_where_it_was_asked_for():
    """What opening raises is raised in the thread that wants the engine."""

    def refuse() -> Clerk:
        raise ConfigurationError("no model")

    with pytest.raises(ConfigurationError, match="no model"):
        MicroBatcher(refuse, max_batch=4, max_wait=0.0, callers=1)


def test_after_closing_nothing_is_taken(batcher):
    """A study that comes too late is to be tried again elsewhere."""
    batcher.close()
    with pytest.raises(Retryable):
        batcher.infer(films(1))


def test_a_real_engine_batched_gives_what_it_gives_alone(bundle, tmp_path, threads):
    """OpenVINO behind the batcher, called by many threads, gives each film what it gives it alone."""
    settings = WorkerSection(engine_cache=tmp_path)
    alone = OpenVinoEngine(bundle, settings)
    batcher = MicroBatcher(lambda: OpenVinoEngine(bundle, settings), max_batch=8, max_wait=0.01, callers=8)
    pixels_B1HW = to_batch(list(bundle.golden()[0]))[:4]
    studies = [pixels_B1HW[start : start + 1 + start % 2] for start in (0, 1, 2, 3)]
    for study, found in zip(studies, threads.map(batcher.infer, studies), strict=True):
        expected = alone.infer(study)
        assert np.allclose(found.logits_B, expected.logits_B, atol=1e-4)
        assert np.allclose(found.cams_Bhw, expected.cams_Bhw, atol=1e-3)
    assert (batcher.name, batcher.precision) == (alone.name, alone.precision)
    batcher.close()
    alone.close()


def test_a_batch_goes_to_the_next_bucket():
    """A batch is padded to the smallest size that holds it."""
    assert [bucket_for(films, BUCKETS) for films in (1, 2, 3, 5, 17, 32)] == [1, 2, 4, 8, 32, 32]
    assert buckets_up_to(1) == (1,)
    assert buckets_up_to(6) == (1, 2, 4, 8)


def test_a_batch_over_the_largest_bucket_is_refused():
    """The sentence names the setting and its largest value."""
    with pytest.raises(ConfigurationError, match=r"of 9 films is over 8.*worker\.max_batch to 8 or less"):
        bucket_for(9, buckets_up_to(6))
