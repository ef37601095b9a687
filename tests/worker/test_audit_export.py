"""The audit trail reaches a real syslog server over TLS: all of it, in order, and nobody else.

The server is Debian's rsyslog with GnuTLS: it takes octet counting over mutual TLS by itself, and it does
what receivers do, it closes without a close_notify. What it never does is a server of our own.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from deploy.pacs import StandInPacs
from dicom_node.doorman import Doorman
from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.refusals import Refused
from dicom_node.spool import Spool
from tests.dicom_node.build import eventually
from tests.worker.build import claimed, settings_in, written
from worker import metrics
from worker.audit_export import AuditExport
from worker.ledger import open_ledger
from worker.office import Office
from worker.settings import AuditSection
from worker.syslog import SyslogServer, frame

CONFIGURATION = """\
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
    defaultNetstreamDriverCAFile="{folder}/authority.pem"
    defaultNetstreamDriverCertFile="{folder}/server.pem"
    defaultNetstreamDriverKeyFile="{folder}/server.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imtcp" address="127.0.0.1" port="{port}" listenPortFileName="{folder}/port")
template(name="all" type="string" string="%pri% %protocol-version% %app-name% %msgid% %msg%\\n")
action(type="omfile" file="{folder}/received" template="all")
"""


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(tmp_path, authority) -> Path:
    """A folder with the certificates of both ends."""
    folder = tmp_path / "syslog"
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    for name, certificate in (
        ("server", authority.issue_cert("127.0.0.1", "localhost")),
        ("client", authority.issue_cert("covariance.example")),
    ):
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in certificate.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    return folder


class Rsyslog:
    """The receiver; it may be stopped and started again on the same port."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._process: subprocess.Popen | None = None
        self.port = 0

    def start(self) -> None:
        port = self._folder / "port"
        port.unlink(missing_ok=True)
        configuration = self._folder / "rsyslog.conf"
        configuration.write_text(CONFIGURATION.format(folder=self._folder, port=self.port))
        command = [self._program, "-n", "-f", str(configuration), "-i", str(self._folder / "pid")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        if self.port == 0:
            eventually(lambda: port.exists() and port.read_text().strip(), 60)
            self.port = int(port.read_text())
        eventually(self._listens, 60)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def lines(self, count: int) -> list[str]:
        """What was received once there are so many lines."""
        eventually(lambda: len(self.received()) >= count, 60)
        return self.received()

    def received(self) -> list[str]:
        path = self._folder / "received"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def rsyslog(program, folder):
    server = Rsyslog(program("rsyslogd", "/usr/sbin/rsyslogd"), folder)
    yield server
    server.stop()


def sections(folder: Path, port: int, **audit) -> dict:
    known = {"syslog_host": "localhost", "syslog_port": port, "syslog_timeout": 10}
    known |= {"syslog_authorities": str(folder / "authority.pem")}
    known |= {"syslog_certificate": str(folder / "client.pem"), "syslog_key": str(folder / "client.key")}
    return known | audit


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(settings_in(tmp_path), migrate=True) as opened:
        yield opened


@pytest.fixture
def export_to(tmp_path, folder, ledger):
    """`export_to(port)` is an export of the ledger to that port."""
    return lambda port, **audit: AuditExport(
        settings_in(tmp_path, audit=sections(folder, port, **audit)), ledger
    )


def events_in(lines: list[str]) -> list[int]:
    """The events that were received, each once, in the order in which they first came."""
    import base64

    details = re.findall(r'type="Ledger Head" value="([^"]+)"', "\n".join(lines))
    return list(dict.fromkeys(int(base64.b64decode(one).partition(b":")[0]) for one in details))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_trail_reaches_a_real_server(rsyslog, export_to, ledger):
    """Every event that has a message is received as RFC 5424 says, with the message id of DICOM."""
    rsyslog.start()
    ledger_events(ledger, 3)
    export = export_to(rsyslog.port)
    assert export.step()
    lines = rsyslog.lines(4)
    assert all(line.startswith("85 1 covariance DICOM+RFC3881 <AuditMessage>") for line in lines)
    assert "110120" in lines[0]
    assert events_in(lines) == [1, 3, 5]


def ledger_events(ledger, count: int, *, after: int = 0) -> None:
    """Two events each, of which the first has a message."""
    for number in range(after, after + count):
        claimed(ledger, f"1.2.{number + 1}")


def test_nothing_is_lost_while_the_server_is_away(rsyslog, export_to, ledger, monkeypatch):
    """A server that goes and comes back, twice, has all events in order, over restarts of ours too."""
    monkeypatch.setattr("worker.audit_export._BATCH", 7)
    rsyslog.start()
    for round_ in range(3):
        export = export_to(rsyslog.port)
        while export.step():
            pass
        rsyslog.stop()
        ledger_events(ledger, 5, after=5 * round_)
        with pytest.raises(Retryable, match="syslog server did not take"):
            export.step()
        rsyslog.start()
    while export.step():
        pass
    eventually(lambda: events_in(rsyslog.received()) == list(range(1, 31, 2)), 60)


class Taking:
    """A server that takes `batches` and no more."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def send(self, _frames: list[bytes]) -> None:
        if not self.left:
            raise Retryable("The syslog server did not take the audit messages.")
        self.left -= 1


def test_a_step_sends_batch_after_batch(export_to, ledger, monkeypatch):
    """What waits leaves in one step, up to a limit; each batch is noted, and the rest is told."""
    monkeypatch.setattr("worker.audit_export._BATCH", 4)
    monkeypatch.setattr("worker.audit_export._BATCHES", 3)
    ledger_events(ledger, 10)
    export = export_to(1)

    def step(batches: int) -> tuple[int, float]:
        monkeypatch.setattr(export, "_server", Taking(batches))
        assert export.step()
        return ledger.read_up_to("syslog"), metrics.AUDIT_UNEXPORTED._value.get()

    with pytest.raises(Retryable):
        step(0)
    assert metrics.AUDIT_UNEXPORTED._value.get() == 20
    with pytest.raises(Retryable):
        step(1)
    assert (ledger.read_up_to("syslog"), metrics.AUDIT_UNEXPORTED._value.get()) == (4, 16)
    assert step(9) == (16, 4)
    assert step(9) == (20, 0)
    assert export.step() is False


def test_nothing_is_lost_when_a_server_dies_with_what_it_was_sent(folder, authority, export_to, ledger):
    """Bytes that lie in the socket of a server that never read them are sent again."""
    ledger_events(ledger, 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def die() -> None:
            connection, _ = listener.accept()
            with server_context(authority).wrap_socket(connection, server_side=True) as secure:
                # The messages have arrived here, and nobody has read them from the kernel.
                wait_for_bytes(secure)

        dying = threading.Thread(target=die)
        dying.start()
        export = export_to(listener.getsockname()[1])
        with pytest.raises(Retryable):
            export.step()
        dying.join()
    assert ledger.read_up_to("syslog") == 0


def wait_for_bytes(secure: ssl.SSLSocket) -> None:
    import select

    assert select.select([secure], [], [], 60)[0]


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_a_silent_server_does_not_hold_us(export_to, ledger):
    """A server that accepts and says nothing is given up at the time-out."""
    ledger_events(ledger, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        export = export_to(silent.getsockname()[1], syslog_timeout=0.5)
        with pytest.raises(Retryable):
            export.step()


def test_a_server_that_is_not_the_one_gets_nothing(tmp_path, folder, ledger):
    """A certificate of an authority that we do not trust ends the connection before a word is said."""
    ledger_events(ledger, 1)
    read = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            try:
                with server_context(trustme.CA()).wrap_socket(connection, server_side=True) as secure:
                    read.append(secure.recv(1000))
            except OSError:
                connection.close()

        listening = threading.Thread(target=listen)
        listening.start()
        audit = sections(folder, listener.getsockname()[1])
        with pytest.raises(Retryable, match="CERTIFICATE_VERIFY_FAILED"):
            AuditExport(settings_in(tmp_path, audit=audit), ledger).step()
        listening.join()
    assert not read


def test_a_client_that_is_refused_is_never_taken_for_heard(rsyslog, folder):
    """A server that refuses us after our handshake has read nothing, however its end and our bytes race."""
    rsyslog.start()
    without = sections(folder, rsyslog.port, syslog_certificate="", syslog_key="")
    server = SyslogServer(AuditSection(**without))
    message = frame(b"<AuditMessage/>", at="2026-03-01T12:00:00+00:00", host="node1")
    for number in range(30):
        with pytest.raises(Retryable):
            server.send([message] * (1 + number % 3 * 100))
    assert not rsyslog.received()


def test_what_cannot_be_used_is_said_at_the_start(export_to):
    """A file that is no certificate is an error of the settings, before the first message."""
    with pytest.raises(ConfigurationError, match=r"\[audit\]"):
        export_to(1, syslog_certificate="/etc/hostname")


def test_events_without_a_message_need_no_server(export_to, ledger, rsyslog):
    """The cursor passes what stays inside, and nothing is connected for it."""
    rsyslog.start()
    ledger_events(ledger, 1)
    export = export_to(rsyslog.port)
    while export.step():
        pass
    rsyslog.stop()
    ledger.retry()
    assert ledger.read_up_to("syslog") == ledger.head().events
    assert export.step() is False


def test_a_forged_event_does_not_block_the_others(rsyslog, export_to, ledger, tmp_path):
    """An event that is not of its form is a security alert, and all that follow it are told."""
    import sqlite3

    ledger_events(ledger, 2)
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        connection.execute("DROP TRIGGER events_refuse_update")
        connection.execute("UPDATE events SET body = '[1]' WHERE seq = 1")
    rsyslog.start()
    with capture_logs() as logs:
        assert export_to(rsyslog.port).step()
    assert [line["event"] for line in logs] == ["event_not_told"]
    lines = rsyslog.lines(3)
    assert "110113" in lines[1]
    assert events_in(lines) == [3]


def test_an_event_of_a_later_version_is_no_alarm(rsyslog, export_to, ledger, tmp_path):
    """Beside a later version an unknown kind is passed over; where there is none it is a forgery."""
    import sqlite3

    ledger_events(ledger, 2)
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        connection.execute("DROP TRIGGER events_refuse_update")
        connection.execute("UPDATE events SET kind = 'FOLDED' WHERE seq = 1")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    rsyslog.start()
    with capture_logs() as logs:
        assert export_to(rsyslog.port).step()
    assert [line["event"] for line in logs] == ["event_of_a_later_version"]
    lines = rsyslog.lines(2)
    assert "110113" not in "".join(lines)
    assert events_in(lines) == [3]


def test_a_refused_peer_is_told(tmp_path, folder, rsyslog):
    """What the node wrote of strangers leaves as a security alert, and its file is removed."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    doorman = Doorman(spool.refusals.keep)
    doorman.refused(Refused.UNKNOWN_TITLE, "192.0.2.9", calling_ae="STRANGER", called_ae="COVARIANCE")
    doorman.stop()
    rsyslog.start()
    settings = settings_in(tmp_path, audit=sections(folder, rsyslog.port))
    with open_ledger(settings, migrate=True) as ledger:
        Office(settings, ledger).take_refusals()
        AuditExport(settings, ledger).step()
    assert list(spool.refusals.waiting()) == []
    lines = rsyslog.lines(2)
    assert events_in(lines) == [1]
    assert "110126" in lines[1]
    assert 'UserID="STRANGER"' in lines[1]


def test_octets_are_counted():
    """The count before a message is that of all its octets (RFC 5425, 4.3)."""
    framed = frame(b"<AuditMessage/>", at="2026-03-01T12:00:00+00:00", host="node1")
    count, _, message = framed.partition(b" ")
    assert int(count) == len(message)
    assert message.startswith(b"<85>1 2026-03-01T12:00:00+00:00 node1 covariance ")
    assert message.endswith(b" DICOM+RFC3881 - <AuditMessage/>")


def test_the_office_exports_and_notes_while_it_delivers(tmp_path, folder, rsyslog):
    """The deliver process tells its start and stop, all events and an alarm, and notes heads."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    rsyslog.start()
    stop = threading.Event()
    checkpoints = tmp_path / "checkpoints"
    audit = sections(folder, rsyslog.port, checkpoints=str(checkpoints), checkpoint_seconds=0.05)
    settings = settings_in(tmp_path, audit=audit, queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"})
    with open_ledger(settings, migrate=True) as ledger:
        written(ledger, spool, "1.2.840.1")
        running = threading.Thread(target=Office(settings, ledger).run, args=(stop,))
        running.start()
        try:
            eventually(lambda: events_in(rsyslog.received()) == [1, 3])
            eventually(checkpoints.exists)
            forged = '{"at":"2026-03-01T12:00:00Z","events":1,"hash":"%s"}\n' % ("a" * 64)
            with checkpoints.open("a") as file:
                file.write(forged)
            eventually(lambda: any("110113" in line for line in rsyslog.received()))
        finally:
            stop.set()
            running.join()
    eventually(lambda: "110121" in rsyslog.received()[-1])


def test_delivery_goes_on_while_the_server_is_away(tmp_path, folder):
    """The loops of the export fail by themselves; the others do not wait for them."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    stop = threading.Event()
    with StandInPacs(tmp_path / "pacs") as pacs:
        pacs_of = {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "verify": "none"}
        settings = settings_in(
            tmp_path,
            audit=sections(folder, closed_port()),
            destinations=[{"name": "pacs", **pacs_of}],
            queue={"url": f"redis+socket://{tmp_path / 'no-broker'}"},
        )
        with open_ledger(settings, migrate=True) as ledger:
            written(ledger, spool, "1.2.840.1")
            running = threading.Thread(target=Office(settings, ledger).run, args=(stop,))
            running.start()
            try:
                eventually(lambda: len(pacs.held("1.2.840.1")) == 2, 60)
            finally:
                stop.set()
                running.join()
            assert ledger.read_up_to("syslog") == 0
