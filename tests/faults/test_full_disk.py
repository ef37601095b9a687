"""A disk that is really full: a small tmpfs under spool, outbox and ledger."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.errors import Retryable
from dicom_node.server import StorageServer
from dicom_node.spool import Spool
from dicom_node.status import Status
from tests.conftest import PEERS_REQUIRED
from tests.dicom_node.build import Listening, data_set_bytes, encoded, film
from tests.worker.build import Clock, settings_in
from tests.worker.conftest import ARRIVAL
from worker.ledger import open_ledger
from worker.phantom import phantom_dataset
from worker.pipeline import Pipeline
from worker.scorer import Scorer

MEBIBYTE = 1_048_576
WATERMARK = 4 * MEBIBYTE
SIZE = 24 * MEBIBYTE
PIXELS = 2_000_000
DESTINATION = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "covariance-test", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        sentence = f"a tmpfs cannot be mounted: {done.stderr.strip()}"
        pytest.fail(sentence) if PEERS_REQUIRED else pytest.skip(sentence)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def free(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def fill(place: Path, *, leave: int) -> Path:
    """Fill the disk with something else, but for so many bytes."""
    path = place / "ballast"
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size + free(place) - leave)
    return path


@pytest.fixture
def node(disk):
    """`node(minimum_free_bytes)` listens before a spool on the small disk."""
    started = []

    def start(minimum_free_bytes: int) -> Listening:
        settings = settings_in(
            disk, node={"port": 0}, spool={"path": disk / "spool", "minimum_free_bytes": minimum_free_bytes}
        )
        spool = Spool(disk / "spool", minimum_free_bytes=minimum_free_bytes)
        spool.prepare()
        filed = []
        server = StorageServer(settings, spool, filed.append)
        started.append(server)
        return Listening(server=server, spool=spool, port=server.start(), settings=settings, filed=filed)

    yield start
    for server in started:
        server.stop()


@pytest.mark.parametrize("minimum_free_bytes", [WATERMARK, 0], ids=["watermark", "no space left"])
def test_full_disk_loses_nothing_and_recovers(disk, node, minimum_free_bytes):
    """What a full disk cannot keep is answered A700 and leaves nothing; with space again it is taken."""
    listening = node(minimum_free_bytes)
    sent = [film(PixelData=os.urandom(PIXELS)) for _ in range(SIZE // PIXELS + 2)]
    answers = [listening.store(one) for one in sent]
    accepted = [one for one, status in zip(sent, answers, strict=True) if status == 0x0000]
    assert set(answers) == {Status.SUCCESS, Status.OUT_OF_RESOURCES}
    assert free(disk) >= max(minimum_free_bytes - 2 * PIXELS, 0)
    assert listening.answers_echo()
    assert listening.parts == []

    held = {one.StudyInstanceUID: listening.spool.instances(one.StudyInstanceUID) for one in sent}
    assert [uid for uid, found in held.items() if found] == [one.StudyInstanceUID for one in accepted]
    for one in accepted:
        (instance,) = held[one.StudyInstanceUID]
        assert data_set_bytes(instance.path) == encoded(one)

    for one in accepted:
        held[one.StudyInstanceUID][0].path.unlink()
    refused = [one for one in sent if one not in accepted]
    assert {listening.store(one) for one in refused} == {Status.SUCCESS}
    assert listening.parts == []


def test_watermark_keeps_space_for_all_else(disk, node):
    """With a watermark the last bytes of the disk are never taken: the ledger beside it can still write."""
    listening = node(WATERMARK)
    fill(disk, leave=WATERMARK + PIXELS)
    answers = [listening.store(film(PixelData=os.urandom(PIXELS))) for _ in range(4)]
    assert answers[-1] == Status.OUT_OF_RESOURCES
    assert free(disk) >= WATERMARK - 2 * PIXELS


@pytest.fixture(scope="module")
def engine_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.mark.parametrize("ledger_on_it", [False, True], ids=["outbox", "outbox and ledger"])
def test_study_waits_for_space(disk, tmp_path, engine_cache, ledger_on_it):
    """While outbox (and ledger) cannot be written a study waits without a trace; with space it is scored."""
    settings = settings_in(
        disk if ledger_on_it else tmp_path,
        spool={"path": disk / "spool", "minimum_free_bytes": 0},
        worker={"decoders": 1, "engine_cache": engine_cache},
        destinations=[DESTINATION],
    )
    spool, clock = Spool(settings.spool.path), Clock()
    spool.prepare()
    received = phantom_dataset(41, rows=300, columns=260)
    study = received.StudyInstanceUID
    spool.store(encoded(received), transfer_syntax_uid=uids.EXPLICIT_VR_LITTLE_ENDIAN, arrival=ARRIVAL)
    with Scorer(settings) as scorer, open_ledger(settings, migrate=True, clock=clock) as ledger:
        pipeline = Pipeline(settings=settings, spool=spool, ledger=ledger, scorer=scorer, worker="w1")
        ballast = fill(disk, leave=0)
        for _ in range(5):
            with pytest.raises(Retryable):
                pipeline.score_study(study)
            clock.pass_by(120)
        assert list(spool.root.glob("outbox/*/*")) == list(spool.root.glob("incoming/*")) == []
        ballast.unlink()
        pipeline.score_study(study)
        record = ledger.study(study)
        assert [one.disposition for one in record.images] == ["scored"]
        assert [len(result.outputs) for result in record.results] == [2]
        assert len(list(spool.root.glob("outbox/*/*"))) == 2
        assert ledger.verify().ok
