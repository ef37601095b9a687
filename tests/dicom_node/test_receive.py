from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.status import Status
from tests.dicom_node.build import (
    Listening,
    as_part10,
    data_set_bytes,
    encoded,
    film,
    send_raw,
    store_request,
)

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
PROPOSE = {  # DCMTK's options that propose a syntax
    uids.IMPLICIT_VR_LITTLE_ENDIAN: "-xi",
    uids.EXPLICIT_VR_LITTLE_ENDIAN: "-xe",
    uids.EXPLICIT_VR_BIG_ENDIAN: "-xb",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


def storescu(
    program: Callable[[str], str], node: Listening, option: str, *paths: Path
) -> subprocess.CompletedProcess[str]:
    """Send files with DCMTK."""
    command = [program("storescu"), "-v", option, "-aec", "COVARIANCE", "127.0.0.1", str(node.port)]
    return subprocess.run(
        [*command, *map(str, paths)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("syntax", PROPOSE)
def test_storescu_sends_every_syntax_that_it_knows(
    syntax: str, node: Listening, program: Callable[[str], str], tmp_path: Path
) -> None:
    """DCMTK's sender is answered success, and what stands in the spool is what stood in its file."""
    sent = film(transfer_syntax=syntax)
    path = as_part10(sent, tmp_path / "film.dcm")
    done = storescu(program, node, PROPOSE[syntax], path)
    assert done.returncode == 0, done.stderr
    (instance,) = node.spool.instances(sent.StudyInstanceUID)
    assert instance.transfer_syntax_uid == syntax
    assert data_set_bytes(instance.path).endswith(data_set_bytes(path)[-4096:])


@pytest.mark.parametrize("syntax", uids.TRANSFER_SYNTAXES)
def test_keeps_the_bytes_of_every_syntax(syntax: str, node: Listening) -> None:
    """pynetdicom sends every accepted syntax; the spool holds the bytes as they were sent."""
    sent = film(transfer_syntax=syntax)
    assert node.store(sent) == Status.SUCCESS
    (instance,) = node.filed
    assert data_set_bytes(instance.path) == encoded(sent)
    assert (instance.calling_ae, instance.called_ae, instance.address) == (
        "MODALITY",
        "COVARIANCE",
        "127.0.0.1",
    )


@pytest.mark.parametrize("size", [0, 1, 16_384, 262_144, 3_000_001])
def test_keeps_data_sets_of_any_size(size: int, node: Listening) -> None:
    """However a data set falls into PDUs and reads, it arrives whole."""
    sent = film(PixelData=os.urandom(size + size % 2))
    assert node.store(sent) == Status.SUCCESS
    assert data_set_bytes(node.filed[0].path) == encoded(sent)


def test_many_objects_share_an_association(node: Listening) -> None:
    """C-STORE and C-ECHO alternate on one association."""
    association = node.associate(
        (uids.COMPUTED_RADIOGRAPHY, uids.EXPLICIT_VR_LITTLE_ENDIAN),
        (uids.VERIFICATION, uids.IMPLICIT_VR_LITTLE_ENDIAN),
    )
    for _ in range(5):
        assert association.send_c_store(film()).Status == Status.SUCCESS
        assert association.send_c_echo().Status == Status.SUCCESS
    association.release()
    assert association.is_released
    assert len(node.filed) == 5


def test_the_same_again_is_a_no_op(node: Listening) -> None:
    """A duplicate is answered success, and nobody hears of it."""
    sent = film()
    assert [node.store(sent), node.store(sent)] == [Status.SUCCESS] * 2
    assert len(node.filed) == len(node.files) == 1


def test_other_content_of_a_known_object_is_kept_too(node: Listening) -> None:
    """A conflict is answered success, both are kept, and it is announced."""
    sent = film()
    node.store(sent)
    sent.PatientID = "4712"
    assert node.store(sent) == Status.SUCCESS
    assert len(node.filed) == len(node.files) == 2


def test_ten_senders_of_one_object(node: Listening) -> None:
    """The same UID on ten associations at once: ten successes, one file, one announcement."""
    sent = film(PixelData=os.urandom(1_000_000))
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(lambda _: node.store(sent), range(10))) == [Status.SUCCESS] * 10
    assert len(node.files) == len(node.filed) == 1


def test_refuses_an_object_that_is_not_what_the_command_says(node: Listening) -> None:
    """A class or instance UID that differs between command and data set is answered A900."""
    sent = film()
    other_instance = film()
    other_class = film(SOPInstanceUID=sent.SOPInstanceUID, SOPClassUID=uids.SECONDARY_CAPTURE)
    with node.requestor() as association:
        for other in (other_instance, other_class):
            status = send_raw(association, store_request(sent), encoded(other))
            assert status == Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    assert node.filed == node.files == node.parts == []


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 500, os.urandom(5000), encoded(film())[:60], encoded(film(StudyInstanceUID="../../x"))],
    ids=["empty", "zeros", "noise", "cut", "path"],
)
def test_refuses_what_it_cannot_read(content: bytes, node: Listening) -> None:
    """An unreadable data set is answered C000 and leaves nothing; the association goes on."""
    sent = film()
    with node.requestor() as association:
        assert send_raw(association, store_request(sent), content) == Status.CANNOT_UNDERSTAND
        assert node.files == node.parts == []
        assert send_raw(association, store_request(sent), encoded(sent)) == Status.SUCCESS


def test_refuses_a_class_that_the_context_does_not_name(node: Listening) -> None:
    """An object of another class than its presentation context is answered A900."""
    sent = film(SOPClassUID=uids.SECONDARY_CAPTURE)
    with node.requestor() as association:
        status = send_raw(association, store_request(sent), encoded(sent))
    assert status == Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    assert node.files == []


@pytest.mark.parametrize("abstract", [uids.VERIFICATION, uids.STORAGE_COMMITMENT])
def test_stores_nothing_on_a_context_that_is_for_something_else(abstract: str, node: Listening) -> None:
    """C-STORE is no operation of Verification (PS3.4 A.4) or of Storage Commitment (J.3)."""
    sent = film(SOPClassUID=abstract)
    with node.requestor((abstract, uids.EXPLICIT_VR_LITTLE_ENDIAN)) as association:
        status = send_raw(association, store_request(sent), encoded(sent))
    assert status == Status.UNRECOGNISED_OPERATION
    assert node.files == []


def test_a_full_disk_is_transient(listen: Callable[..., Listening]) -> None:
    """Below the watermark every C-STORE is answered A700, and C-ECHO still works."""
    node = listen(minimum_free_bytes=2**62)
    assert node.store(film()) == Status.OUT_OF_RESOURCES
    assert node.answers_echo()


def test_a_broken_disk_is_transient_and_recovers(node: Listening) -> None:
    """While the spool cannot be written the answer is A700; after that the same object is taken."""
    sent = film()
    (node.spool.root / "studies").rename(node.spool.root / "away")
    assert node.store(sent) == Status.OUT_OF_RESOURCES
    assert node.parts == []
    (node.spool.root / "away").rename(node.spool.root / "studies")
    assert node.store(sent) == Status.SUCCESS


def test_an_object_over_the_limit_is_not_kept(listen: Callable[..., Listening]) -> None:
    """More bytes than may be kept are answered A700, and nothing stays."""
    node = listen(maximum_object_bytes=1_048_576)
    assert node.store(film(PixelData=bytes(2_000_000))) == Status.OUT_OF_RESOURCES
    assert node.files == node.parts == []


def test_a_listener_that_fails_does_not_lose_the_object(node: Listening) -> None:
    """Where the announcement fails the object is durable all the same, and success is the answer."""

    def fail(_: object) -> None:
        raise RuntimeError

    node.server._on_filed = fail
    assert node.store(film()) == Status.SUCCESS
    assert len(node.files) == 1


def test_logs_hold_no_name(node: Listening, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither accepted nor refused objects bring a name or a patient id into the logs."""
    node.store(film())
    with node.requestor() as association:
        send_raw(association, store_request(film()), encoded(film()))
    output = "".join(capfd.readouterr())
    assert "object_refused" in output
    assert "Secret" not in output
    assert "4711" not in output


def test_filed_says_what_it_was(node: Listening) -> None:
    """What is announced is what the spool lists."""
    sent = film()
    node.store(sent)
    assert node.filed == node.spool.instances(sent.StudyInstanceUID)
