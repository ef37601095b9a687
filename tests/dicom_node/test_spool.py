from __future__ import annotations

import os
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest

import dicom_node.spool
from dicom_node import uids
from dicom_node.commitment import CommitmentReport
from dicom_node.durable import Mutex
from dicom_node.lanes import Lane
from dicom_node.spool import Filed, Spool, SpooledInstance, SpoolFull
from tests.dicom_node.build import arrival, data_set_bytes, encoded, film

SYNTAX = uids.EXPLICIT_VR_LITTLE_ENDIAN


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


def keep(spool: Spool, content: bytes) -> Filed:
    return spool.store(content, transfer_syntax_uid=SYNTAX, arrival=arrival())[1]


def test_keeps_the_bytes_as_they_came(spool: Spool) -> None:
    """After the file meta stand exactly the bytes received."""
    content = encoded(film())
    instance, _ = spool.store(content, transfer_syntax_uid=SYNTAX, arrival=arrival())
    assert data_set_bytes(instance.path) == content


def test_a_spooled_file_is_a_part_10_file(spool: Spool) -> None:
    """pydicom reads it, file meta and pixels, without force."""
    sent = film()
    instance, _ = spool.store(encoded(sent), transfer_syntax_uid=SYNTAX, arrival=arrival())
    read = pydicom.dcmread(instance.path)
    assert read.PixelData == sent.PixelData
    assert read.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID
    assert read.file_meta.SourceApplicationEntityTitle == "MODALITY"
    assert read.preamble == bytes(128)


def test_lists_what_was_stored(spool: Spool) -> None:
    """Everything that `store` returned is read back from the disk alone."""
    stored = [
        spool.store(
            encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{number}")),
            transfer_syntax_uid=SYNTAX,
            arrival=arrival(),
        )[0]
        for number in range(3)
    ]
    assert Spool(spool.root).instances("1.2.3") == stored


def test_counts_studies_without_reading_them(spool: Spool) -> None:
    """A study shows how many objects it has and when they came."""
    for number in range(2):
        keep(spool, encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{number}")))
    (study,) = spool.studies()
    assert (study.study_instance_uid, study.instances) == ("1.2.3", 2)
    assert study.first_ns <= study.last_ns


@pytest.mark.parametrize("quiet_seconds", [0, 3600])
def test_a_study_that_was_looked_into_still_shows_what_comes_later(spool: Spool, quiet_seconds: int) -> None:
    """However long a study has not changed, one more object is seen."""
    keep(spool, encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1")))
    long_ago = time.time() - quiet_seconds
    os.utime(spool.root / "studies" / "1.2.3", (long_ago, long_ago))
    assert [study.instances for study in spool.studies()] == [1]
    keep(spool, encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.2")))
    assert [study.instances for study in spool.studies()] == [2]


@pytest.mark.parametrize(
    ("place", "rotten"),
    [
        (128, b"XXXX"),  # no DICM
        (132, b"\xff" * 500),
        (0, b""),  # all is gone
        (900, b"\0" * 100),
    ],
    ids=["prefix", "elements", "empty", "provenance"],
)
def test_a_rotten_head_leaves_what_the_name_tells(spool: Spool, place: int, rotten: bytes) -> None:
    """The object is listed with the UID and digest of its name, and the others beside it as they are."""
    stored = [
        spool.store(
            encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{number}")),
            transfer_syntax_uid=SYNTAX,
            arrival=arrival(),
        )[0]
        for number in range(2)
    ]
    content = bytearray(stored[0].path.read_bytes())
    content[place : place + len(rotten)] = rotten
    stored[0].path.write_bytes(content if rotten else b"")
    found = {one.sop_instance_uid: one for one in spool.instances("1.2.3")}
    assert found["1.2.3.1"] == stored[1]
    assert found["1.2.3.0"].sha256 == stored[0].sha256


def test_a_flipped_bit_in_a_head_names_no_other_object(spool: Spool) -> None:
    """A head that has become another object's is not believed."""
    sop = "1.2.3.4444"
    instance, _ = spool.store(
        encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID=sop)),
        transfer_syntax_uid=SYNTAX,
        arrival=arrival(),
    )
    instance.path.write_bytes(instance.path.read_bytes().replace(sop.encode(), b"1.2.3.4445", 1))
    (found,) = spool.instances("1.2.3")
    assert (found.sop_instance_uid, found.calling_ae) == (sop, "")


def test_files_that_are_not_ours_are_no_objects(spool: Spool) -> None:
    """A stray file is neither listed nor counted, so that nobody waits for it."""
    keep(spool, encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1")))
    for name in ("notes.txt", "1.2.3.9.dcm", "copy of film.dcm"):
        (spool.root / "studies" / "1.2.3" / name).write_bytes(b"abc")
    assert len(spool.instances("1.2.3")) == 1
    assert [study.instances for study in spool.studies()] == [1]


def test_strays_hide_no_study(spool: Spool) -> None:
    """What lies beside the studies and is none is passed over."""
    keep(spool, encoded(film(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1")))
    (spool.root / "studies" / ".DS_Store").write_bytes(b"abc")
    (spool.root / "studies" / "1.2.2").write_bytes(b"abc")
    (spool.root / "studies" / "lost+found").mkdir()
    assert [study.study_instance_uid for study in spool.studies()] == ["1.2.3"]


def test_an_unknown_study_has_no_instances(spool: Spool) -> None:
    """What is no study, or no UID at all, is empty."""
    assert spool.instances("1.2.3") == spool.instances("../reports") == []


def test_the_same_again_is_a_duplicate(spool: Spool) -> None:
    """Same UID and digest: one file."""
    content = encoded(film())
    assert [keep(spool, content), keep(spool, content)] == [Filed.NEW, Filed.DUPLICATE]
    assert len(list(spool.root.glob("studies/*/*"))) == 1


def test_a_duplicate_takes_the_place_of_the_first(spool: Spool) -> None:
    """With its own time beside the first's, by which a purge tells them apart; all else stays as it was."""
    sent = film()
    content = encoded(sent)
    first = replace(arrival(), calling_ae="CR1", lane=Lane.STAT)
    again = replace(
        first, calling_ae="PACS", lane=Lane.BACKFILL, received_at=first.received_at + timedelta(days=9)
    )
    for one in (first, again):
        spool.store(content, transfer_syntax_uid=SYNTAX, arrival=one)
    (kept,) = spool.instances(sent.StudyInstanceUID)
    assert (kept.calling_ae, kept.lane) == ("CR1", Lane.STAT)
    assert (kept.received_at, kept.again_at) == (first.received_at, again.received_at)
    assert kept.path.read_bytes().endswith(content)
    spool.remove({kept.path: first.received_at})
    assert kept.path.exists(), "it is another's"
    spool.remove({kept.path: again.received_at})
    assert not kept.path.exists()


def test_a_process_that_stands_still_with_the_lock_holds_up_no_sender(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is refused after a while, as where the disk takes nothing, and taken when it comes again."""
    monkeypatch.setattr("dicom_node.durable._MUTEX_SECONDS", 0.05)
    content = encoded(film())
    with Mutex(spool.root / "filing.lock").held(), pytest.raises(OSError, match="is not let go"):
        keep(spool, content)
    assert list(spool.root.glob("studies/*/*")) == list(spool.root.glob("incoming/*")) == []
    assert keep(spool, content) is Filed.NEW


def test_an_object_that_comes_again_in_the_middle_of_a_removal_is_there_after(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the old one and its removal nothing takes its place: that would be removed."""
    content, now = encoded(film()), arrival()
    old, _ = spool.store(content, transfer_syntax_uid=SYNTAX, arrival=now)
    again = replace(now, received_at=now.received_at + timedelta(days=9))
    look = dicom_node.spool.read_instance

    with ThreadPoolExecutor(1) as pool:
        sent: list[Future[object]] = []

        def slow(path: Path, *name: str) -> SpooledInstance:
            found = look(path, *name)
            if not sent:
                sender = Spool(spool.root)
                sent.append(pool.submit(sender.store, content, transfer_syntax_uid=SYNTAX, arrival=again))
                wait(sent, timeout=0.2)  # what is kept out may take as long as it likes
            return found

        monkeypatch.setattr("dicom_node.spool.read_instance", slow)
        spool.remove({old.path: old.last_at})
        sent[0].result(timeout=30)
    assert old.path.exists()


def test_the_first_content_stays_the_first_when_it_comes_again(spool: Spool) -> None:
    """Of two contents of a UID the older counts: sending it once more does not make it the younger."""
    sent, now = film(), arrival()
    first = encoded(sent)
    sent.PatientID = "4712"
    for number, content in enumerate((first, encoded(sent), first)):
        came = replace(now, received_at=now.received_at + timedelta(seconds=number))
        spool.store(content, transfer_syntax_uid=SYNTAX, arrival=came)
    kept = [one.path.read_bytes() for one in spool.instances(sent.StudyInstanceUID)]
    assert [one.endswith(first) for one in kept] == [True, False]


def test_other_content_is_kept_beside(spool: Spool) -> None:
    """Same UID, other content: both files are there, and it is said."""
    first = film()
    keep(spool, encoded(first))
    first.PatientID = "4712"
    assert keep(spool, encoded(first)) is Filed.CONFLICT
    assert len(list(spool.root.glob("studies/*/*"))) == 2


def test_one_of_many_equal_sends_is_new(spool: Spool) -> None:
    """Ten threads that file the same object leave one file, new once."""
    content = encoded(film())
    with ThreadPoolExecutor(10) as pool:
        filed = list(pool.map(lambda _: keep(spool, content), range(10)))
    assert sorted(filed) == [Filed.DUPLICATE] * 9 + [Filed.NEW]


def test_a_study_that_comes_after_its_purge_is_durable_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory is a new one: the name is brought to the disk before 0x0000 is answered."""
    content = encoded(film())
    instance, _ = spool.store(content, transfer_syntax_uid=SYNTAX, arrival=arrival())
    spool.remove({instance.path: instance.received_at})
    assert not instance.path.parent.exists()
    synchronised: list[Path] = []
    monkeypatch.setattr("dicom_node.durable.synchronise", synchronised.append)
    assert keep(spool, content) is Filed.NEW
    assert instance.path.parent.parent in synchronised


def test_a_context_that_is_left_leaves_nothing(spool: Spool) -> None:
    """An object that is never filed is gone from the disk."""
    with spool.receive() as incoming:
        incoming.write(b"abc")
    assert list(spool.root.glob("incoming/*")) == []


def test_refuses_below_the_watermark(tmp_path: Path) -> None:
    """With less space free than is to be kept, nothing is opened."""
    spool = Spool(tmp_path, minimum_free_bytes=2**62)
    spool.prepare()
    with pytest.raises(SpoolFull):
        spool.receive()


def test_sweeps_what_a_dead_process_left(spool: Spool) -> None:
    """A temporary file that nobody holds is removed at the start."""
    stale = spool.root / "incoming" / "x.part"
    stale.write_bytes(b"abc")
    spool.prepare()
    assert not stale.exists()


def test_does_not_sweep_what_is_being_written(spool: Spool) -> None:
    """A start beside a writer leaves the writer's file alone."""
    with spool.receive() as incoming:
        Spool(spool.root).prepare()
        incoming.write(encoded(film()))
        _, filed = incoming.file(incoming.identity(SYNTAX), SYNTAX, arrival())
    assert filed is Filed.NEW


def test_nobody_else_may_look(spool: Spool) -> None:
    """Directories are 0700 and files 0600."""
    keep(spool, encoded(film()))
    for path in [spool.root, *spool.root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted


def test_keeps_and_drops_outputs(spool: Spool) -> None:
    """An output is there byte for byte, once however often it is kept, until it is dropped."""
    other = spool.outbox.keep("1.2.3", "1.2.3.4", b"other content under the same UID")
    path = spool.outbox.keep("1.2.3", "1.2.3.4", b"abc")
    assert spool.outbox.keep("1.2.3", "1.2.3.4", b"abc") == path
    assert path.read_bytes() == b"abc"
    assert other.read_bytes() == b"other content under the same UID"
    for kept in (path, path, other):
        spool.outbox.drop(kept)
    assert list(spool.root.glob("outbox/*")) == []


def test_tells_which_outputs_are_old(spool: Spool) -> None:
    """Outputs are listed by when they were kept; a stray file is none."""
    path = spool.outbox.keep("1.2.3", "1.2.3.4", b"abc")
    path.with_name("notes.dcm").write_bytes(b"abc")
    now = datetime.now(UTC)
    assert list(spool.outbox.kept(before=now + timedelta(hours=1))) == [path]
    assert list(spool.outbox.kept(before=now - timedelta(hours=1))) == []


def test_drops_nothing_but_outputs(spool: Spool) -> None:
    """A path outside the outbox is refused."""
    instance, _ = spool.store(encoded(film()), transfer_syntax_uid=SYNTAX, arrival=arrival())
    with pytest.raises(ValueError, match="only outputs"):
        spool.outbox.drop(instance.path)


def test_keeps_and_drops_reports(spool: Spool) -> None:
    """A commitment report survives a restart until it is dropped."""
    report = CommitmentReport(transaction_uid="1.2.3", committed=("1.2.4",), failed=(("1.2.5", 0x0112),))
    spool.reports.keep(report)
    assert list(Spool(spool.root).reports.waiting()) == [report]
    spool.reports.drop("1.2.3")
    assert list(spool.reports.waiting()) == []


@pytest.mark.parametrize("damage", ["", "{}", '{"transaction": "1.2.9"}', "[1]"])
def test_a_damaged_report_stops_no_other(spool: Spool, damage: str) -> None:
    """A report that cannot be read is put aside, and those behind it are taken."""
    good = CommitmentReport(transaction_uid="1.2.4", committed=("1.2.5",), failed=())
    spool.reports.keep(good)
    (spool.root / "reports" / "1.2.3.json").write_text(damage)
    assert list(spool.reports.waiting()) == [good]
    assert [path.name for path in spool.root.glob("reports/*.bad")] == ["1.2.3.bad"]


def test_a_report_that_the_disk_does_not_give_stays(spool: Spool) -> None:
    """One look that fails for want of the disk or of descriptors costs no report."""
    report = CommitmentReport(transaction_uid="1.2.3", committed=("1.2.4",), failed=())
    spool.reports.keep(report)
    path = spool.root / "reports" / "1.2.3.json"
    content = path.read_bytes()
    path.unlink()
    path.mkdir()  # as good as a bad sector, also for root
    assert list(spool.reports.waiting()) == []
    path.rmdir()
    path.write_bytes(content)
    assert list(spool.reports.waiting()) == [report]


@pytest.mark.parametrize("uid", ["..", "../x", "", "/etc/passwd", "1.2." + "3" * 64])
def test_a_name_of_a_file_is_a_valid_uid(spool: Spool, uid: str) -> None:
    """What comes from outside never becomes a path."""
    with pytest.raises(ValueError, match="UID"):
        spool.outbox.keep("1.2.3", uid, b"")
    with pytest.raises(ValueError, match="UID"):
        spool.reports.keep(CommitmentReport(transaction_uid=uid, committed=(), failed=()))
