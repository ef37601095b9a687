"""Whatever way a study takes, what its header says of a person is written to spool and results alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from pydicom import Dataset, Sequence, dcmwrite
from pydicom.datadict import DicomDictionary
from pynetdicom import AE, evt

from deploy.pacs import StandInPacs
from dicom_node import uids
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from tests.integration.system import COVARIANCE, ENVIRONMENT, free_port
from worker.ledger import Disposition
from worker.phantom import phantom_dataset
from worker.report import identity

MARKED = re.compile(rb"ZQXJV\w*|18930217|1893-02-17", re.IGNORECASE)
"""What no film but ours says: a text for each attribute, which names its tag, and a birth date."""
BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")
BIRTH_DATE = "18930217"
KEY = "ZQXJVKEY-of-this-site"
FILE = "ZQXJVFILENAME"
WORDS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
DECISIVE = {"PhotometricInterpretation", "Modality", "ImageType", "BodyPartExamined", "ViewPosition"}
DECISIVE |= {"PatientSex", "SpecificCharacterSet", "Laterality", "PatientOrientation", "PixelPresentation"}
"""Attributes that decide on the way that a film takes."""


def word_for(tag: int) -> str:
    return f"ZQXJV{tag:08X}"


def marked(film: Dataset) -> Dataset:
    """The film with a mark in every attribute that holds text, in private ones and within sequences."""
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if vr in WORDS and not retired and 0x0008 <= tag >> 16 < 0x7FE0 and keyword not in DECISIVE:
            film.add_new(tag, vr, word_for(tag))
    film.PatientBirthDate = BIRTH_DATE
    for group in (0x0009, 0x0011, 0x2001):
        film.add_new((group, 0x0010), "LO", f"ZQXJVCREATOR{group:04X}")
        film.add_new((group, 0x1001), "LO", f"ZQXJVPRIVATE{group:04X}")
        film.add_new((group, 0x1002), "UN", b"ZQXJVUNKNOWN")
    inner = Dataset()
    inner.PatientID, inner.IssuerOfPatientID = "ZQXJVOTHERID", "ZQXJVOTHERISSUER"
    inner.AccessionNumber, inner.ScheduledProcedureStepDescription = "ZQXJVINNERACC", "ZQXJVINNERSTEP"
    film.OtherPatientIDsSequence = Sequence([inner])
    film.RequestAttributesSequence = Sequence([inner])
    return film


def marked_film(way: str, **changed: object) -> Dataset:
    film = marked(phantom_dataset(3, salt=f"privacy {way}", rows=640, columns=512))
    for keyword, value in changed.items():
        setattr(film, keyword, value)
    return film


def films_of_every_way() -> dict[str, Dataset]:
    """Films that the node accepts, by what becomes of them."""
    good = marked_film("good")
    films = {
        "good": good,
        "by policy": marked_film("by policy", BodyPartExamined="HAND"),
        "strange body part": marked_film("strange body part", BodyPartExamined="ZQXJVBODYPART"),
        "strange view": marked_film(
            "strange view", ViewPosition="ZQXJVVIEW", PatientOrientation=["ZQXJVL", "ZQXJVF"]
        ),
        "strange character set": marked_film("strange character set"),
        "strange photometric": marked_film("photometric", PhotometricInterpretation="ZQXJVPHOTOMETRIC"),
        "short pixels": marked_film("short pixels", PixelData=b"ZQXJVPIXELS!"),
        "long name": marked_film("long name", ReferringPhysicianName="ZQXJV^" + "ZQXJVLONG" * 900),
        "other content": marked_film("good", PixelData=bytes(reversed(good.PixelData))),
        "one patient": marked_film("two patients"),
        "other patient": marked_film("two patients", PatientID="ZQXJVSECONDPATIENT"),
        "class set aside": marked_film("ct", SOPClassUID=uids.CT_IMAGE, Modality="CT"),
        "no JPEG": marked_film("no JPEG"),
    }
    for name in ("other patient", "class set aside"):
        films[name].SOPInstanceUID = uids.derive_uid("privacy", name)
    films["strange photometric"].SamplesPerPixel = 1
    return films


def raw(film: Dataset, path: Path) -> Path:
    dcmwrite(path, film, enforce_file_format=True)
    return path


class Watch:
    """Everything that a broker is told, and what it holds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._said = bytearray()

    def __enter__(self) -> Watch:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.sendall(b"MONITOR\r\n")
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _listen(self) -> None:
        while said := self._socket.recv(65536):
            self._said += said

    def heard(self) -> bytes:
        """All commands so far; quotes within them are escaped."""
        return bytes(self._said).replace(b"\\", b"")

    def held(self) -> list[bytes]:
        """Every key of every database with its content."""
        found = []
        for number in range(16):
            with redis.Redis(port=self._port, db=number) as client:
                for key in client.scan_iter():
                    read = {
                        b"string": client.get,
                        b"list": lambda name: client.lrange(name, 0, -1),
                        b"set": client.smembers,
                        b"hash": client.hgetall,
                        b"zset": lambda name: client.zrange(name, 0, -1),
                    }[client.type(key)]
                    found.append(key + b" " + repr(read(key)).encode())
        return found


def marks_in(content: bytes) -> set[bytes]:
    """The marks that stand in it, as they are, in 16 bits a character, or in base64."""
    found = set(MARKED.findall(content)) | set(MARKED.findall(content.replace(b"\0", b"")))
    for run in BASE64.findall(content):
        try:
            found.update(MARKED.findall(base64.b64decode(run + b"=" * (-len(run) % 4))))
        except binascii.Error:
            continue
    return found


def files_below(*places: Path) -> Iterator[Path]:
    for place in places:
        yield from (path for path in place.rglob("*") if path.is_file())


@pytest.fixture
def unwilling() -> Iterator[int]:
    """A PACS that refuses every object, and says why in words that name the patient."""

    def refuse(event: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xC001, "no room for ZQXJVCOMMENT^PATIENT"
        answer.OffendingElement = 0x00100010
        return answer

    entity = AE(ae_title="UNWILLING")
    for sop_class in (uids.SECONDARY_CAPTURE, uids.COMPREHENSIVE_3D_SR):
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, refuse)])
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the processes live: home, temporary files and working directory."""
    for name in ("home", "tmp", "work", "films"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.timeout(900)
def test_no_identifier_is_written_elsewhere(make_system, unwilling, place, eventually, redis_port):
    """Marks in every attribute of films, good and bad, stand in no log, message, output or other file."""
    environment = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "COLUMNS": "200"}
    films = films_of_every_way()
    with StandInPacs(place / "pacs") as pacs, Watch(redis_port) as watch:
        ports = {"good": pacs.port, "unwilling": unwilling, "away": free_port()}
        system = make_system(
            [
                {"name": name, "ae_title": name.upper(), "host": "127.0.0.1", "port": port, "verify": "find"}
                | ({"ae_title": pacs.ae_title} if name == "good" else {})
                for name, port in ports.items()
            ],
            node={"allowed_callers": ["MODALITY"], "maximum_object_bytes": 1_500_000},
            database={"patient_hash_key": KEY},
            delivery={"permanent_attempts": 2},
            log={"level": "DEBUG"},
        )
        for program in system.programs.values():
            program.environment.update(environment)
            program.directory = place / "work"
        system.start("node", "deliver")
        answers = send_all(system.port, films, place / "films")
        assert answers.pop("no JPEG") == 0
        assert {name: status for name, status in answers.items() if status != 0} == {}
        refused = send_what_is_refused(system.port, place / "films")
        assert 0 not in refused.values()
        eventually(system.waiting_messages, what="the node has rung")
        messages = watch.held()
        assert messages
        system.start("worker")

        def at_rest() -> bool:
            images = system.ledger.status().images
            return sum(images.values()) == len(films) and not images[Disposition.PENDING]

        eventually(at_rest, seconds=120, what="every film has ended")
        study = films["good"].StudyInstanceUID
        eventually(lambda: len(pacs.held(study)) == 2, what="the result is at the PACS that takes it")
        eventually(
            lambda: system.ledger.status().deliveries["unwilling"].get("failed"), what="the other refuses"
        )
        outputs = run_commands(system, study, place, environment)
        messages += watch.held()
        system.stop()
        written = {f"message {n}": one for n, one in enumerate([*messages, watch.heard()])} | outputs

    # What the search must find is there to be found.
    status = system.ledger.status()
    assert status.images[Disposition.SCORED]
    assert status.images[Disposition.BY_POLICY]
    assert status.images[Disposition.QUARANTINED] >= 4
    spooled = set().union(*(marks_in(path.read_bytes()) for path in files_below(system.folder / "spool")))
    assert len(spooled) > 1000
    assert marks_in(base64.b64encode(b"...ZQXJVBODY...")) == {b"ZQXJVBODY"}
    assert re.search(rb'"LPUSH".*"body": ', watch.heard())
    assert all(program.output.stat().st_size for program in system.programs.values())

    own = {system.folder / "spool", place / "films", place / "pacs"}
    for path in files_below(system.folder, place):
        if own.isdisjoint(path.parents) and path.name != "covariance.toml":
            written[str(path.relative_to(place.parent.parent))] = path.read_bytes()
    assert any("ledger" in name for name in written)
    assert {name: marks for name, content in written.items() if (marks := marks_in(content))} == {}

    told = "".join(repr(event.body) for event in system.ledger.study(study).events)
    digest = identity.patient_digest(films["good"])
    assert hmac.new(KEY.encode(), digest.encode(), hashlib.sha256).hexdigest() in told
    for value in (word_for(0x00100020), word_for(0x00080050), BIRTH_DATE, digest):
        assert hashlib.sha256(value.encode()).hexdigest() not in told
    assert digest not in told


def send_all(port: int, films: dict[str, Dataset], folder: Path) -> dict[str, int | None]:
    """Send each film over an association of its own; what was answered."""
    answers = {}
    for name, film in films.items():
        syntax = film.file_meta.TransferSyntaxUID
        path = raw(film, folder / f"{name}.dcm")
        if name == "no JPEG":
            # Native pixels under the name of JPEG Lossless: a decoder finds no image in them.
            path.write_bytes(path.read_bytes().replace(syntax.encode() + b"\0", b"1.2.840.10008.1.2.1\0", 1))
        answers[name] = send_raw(port, film.SOPClassUID, film.SOPInstanceUID, syntax, path)
    return answers


def send_raw(
    port: int, sop_class: str, sop: str, syntax: str, path: Path, calling: str = "MODALITY"
) -> int | None:
    peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae=calling, timeout=30.0)
    item = SendItem(
        sop_class_uid=str(sop_class), sop_instance_uid=str(sop), transfer_syntax_uid=str(syntax), path=path
    )
    try:
        with StoreAssociation(peer, [item]) as association:
            return association.send(item).status
    except PeerUnavailable:
        return None


def send_what_is_refused(port: int, folder: Path) -> dict[str, int | None]:
    """Send what the node does not accept; what was answered, None for an association that it refused."""
    syntax, sop_class = uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.COMPUTED_RADIOGRAPHY
    refused = {
        "no study": marked_film("no study"),
        "study is no UID": marked_film("no uid", StudyInstanceUID="1.2.3"),
        "too big": marked_film("too big", PixelData=b"ZQXJVBIG!!" * 250_000),
        "not listed": marked_film("not listed"),
    }
    del refused["no study"].StudyInstanceUID
    answers = {}
    for name, film in refused.items():
        path = raw(film, folder / f"{name}.dcm")
        if name == "study is no UID":
            path.write_bytes(path.read_bytes().replace(b"1.2.3\0", b"ZQXJVU", 1))
        calling = "INTRUDER" if name == "not listed" else "MODALITY"
        answers[name] = send_raw(port, sop_class, film.SOPInstanceUID, syntax, path, calling)
    sound = marked_film("mismatch")
    path = raw(sound, folder / "mismatch.dcm")
    answers["other UID in the command"] = send_raw(port, sop_class, "1.2.3.4.5", syntax, path)
    head = path.read_bytes()[: 144 + int.from_bytes(path.read_bytes()[140:144], "little")]
    for name, body in {
        "garbage": b"ZQXJVGARBAGE" * 500,
        "cut": path.read_bytes()[len(head) : len(head) + 700],
        "length": b"\x08\x00\x05\x00CS\xff\xffZQXJVLENGTH",
    }.items():
        path = folder / f"{name}.dcm"
        path.write_bytes(head + body)
        answers[name] = send_raw(port, sop_class, sound.SOPInstanceUID, syntax, path)
    return answers


def run_commands(system, study: str, place: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """What the commands print. `score` and `send` name the files that they were given, as they must."""
    folder = place / "films" / "command"
    folder.mkdir()
    good = str(raw(marked_film("command"), folder / f"{FILE}.dcm"))
    bad = folder / f"{FILE}-bad.dcm"
    bad.write_bytes(b"ZQXJVNOFILE" * 100)
    broken = str(raw(marked_film("broken", PixelData=b"ZQXJVPIXELS!"), folder / f"{FILE}-broken.dcm"))
    stranger = ["--to", f"127.0.0.1:{system.port}/COVARIANCE"]

    def run(arguments: list[str]) -> tuple[str, bytes]:
        done = subprocess.run(
            [COVARIANCE, "--config", str(system.folder / "covariance.toml"), *arguments],
            cwd=place / "work",
            env={**ENVIRONMENT, **environment},
            capture_output=True,
            timeout=240,
            check=False,
        )
        assert done.stdout + done.stderr
        said = (done.stdout + b"\n" + done.stderr).replace(FILE.encode(), b"the file")
        return f"output of {' '.join(arguments)}", said.replace(str(folder).encode(), b"")

    commands = [
        ["status"],
        ["status", "--json"],
        ["show", study],
        ["show", study, "--json"],
        ["config", "show"],
        ["config", "check", "--connect"],
        ["purge"],
        ["audit", "verify"],
        ["score", good, broken, str(bad)],
        ["send", good, str(bad), *stranger, "--as", "MODALITY"],
        ["retry"],
    ]
    with ThreadPoolExecutor(4) as pool:
        return dict(pool.map(run, commands))
