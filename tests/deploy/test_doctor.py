"""`covariance doctor`: what it says of real peers that are as they should not be."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from deploy.doctor.check import exit_code, run_probe
from deploy.doctor.examine import PROBES
from deploy.doctor.network import is_translated
from dicom_node.dispatch import celery_app
from tests.conftest import find_program
from tests.dicom_node.certificates import Authority
from tests.dicom_node.conftest import listen  # noqa: F401 (a fixture)
from tests.integration.system import Program, accepts, eventually, free_port
from tests.worker.ledger.conftest import cluster  # noqa: F401 (a fixture)
from worker.ledger import migrate
from worker.ledger.store import make_engine, transaction
from worker.settings import Settings


@pytest.fixture
def probe(tmp_path):
    """`probe(name, **sections)` makes one check with settings in an empty folder."""

    def run(name, **sections):
        places = {
            "spool": {"path": tmp_path / "spool", "minimum_free_bytes": 0},
            "database": {"url": f"sqlite:///{tmp_path / 'ledger.sqlite3'}"},
            "worker": {"engine_cache": tmp_path / "engine"},
        }
        return list(run_probe(name, PROBES[name], Settings(**{**places, **sections})))

    return run


@pytest.fixture
def receiver(tmp_path):
    """`receiver(*options)` starts DCMTK's storescp and returns its port."""
    running = []

    def start(*options):
        port = free_port()
        command = [find_program("storescp"), "-aet", "PACS", *options, str(port)]
        running.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        eventually(lambda: accepts(port), what="storescp listens")
        return port

    yield start
    for one in running:
        one.kill()
        one.wait()


_WORKER = """
import sys
from dicom_node.dispatch import celery_app
from worker.settings import Settings
options = ["--pool=solo", "--hostname=covariance@old", "--without-gossip", "--without-mingle"]
celery_app(Settings(queue={"url": sys.argv[1]})).worker_main(["worker", f"--queues={sys.argv[2]}", *options])
"""


@pytest.fixture
def worker_of(program, tmp_path):
    """`worker_of(queues)` starts a Redis and a Celery worker on these queues; the broker's URL."""
    started = []

    def start(queues):
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0"
        broker = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        started.append(Program([*broker, "--dir", str(tmp_path)], tmp_path / "redis.log").start())
        eventually(lambda: accepts(port), what="Redis listens")
        worker = [sys.executable, "-c", _WORKER, url, ",".join(queues)]
        started.append(Program(worker, tmp_path / "worker.log").start())
        control = celery_app(Settings(queue={"url": url})).control
        eventually(lambda: control.ping(timeout=1.0), what="the worker answers")
        return url

    yield start
    for one in reversed(started):
        one.stop()


def destination(port, **values):
    return [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, **values}]


def said(checks, level):
    return " ".join(f"{one.sentence} {one.advice}" for one in checks if one.level == level)


def test_a_destination_that_answers_is_ok(probe, receiver):
    """A real receiver answers our C-ECHO."""
    (check,) = probe("destinations", destinations=destination(receiver()))
    assert (check.level, exit_code([check])) == ("OK", 0), check


def test_a_receiver_that_refuses_is_explained(probe, receiver, tmp_path):
    """A receiver that rejects every association is told apart from one that is away."""
    (check,) = probe("destinations", destinations=destination(receiver("--refuse")))
    assert check.level == "FAIL"
    assert "gives no reason (1,1,1)" in check.sentence
    assert "Register COVARIANCE" in check.advice


def test_a_called_title_that_is_not_theirs_is_explained(probe, tmp_path):
    """DCMTK's dcmqrscp knows by which name it goes."""
    port = free_port()
    (tmp_path / "data").mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 4\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {tmp_path / 'data'} RW (9, 1024mb) ANY\nAETable END\n"
    )
    command = [find_program("dcmqrscp"), "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: accepts(port), what="dcmqrscp listens")
            (wrong,) = probe("destinations", destinations=destination(port))
            (right,) = probe("destinations", destinations=destination(port, ae_title="ARCHIVE"))
        finally:
            server.kill()
    assert "does not go by the called AE title PACS (1,1,7)" in wrong.sentence
    assert right.level == "OK"


def test_a_calling_title_that_they_do_not_know_is_explained(probe, listen):  # noqa: F811
    """A peer with an allow-list, as our own node is one, rejects us until we are on it."""
    port = listen(ae_title="PACS", allowed_callers=("CT1",)).port
    (check,) = probe("destinations", destinations=destination(port))
    assert "does not recognise our calling AE title COVARIANCE (1,1,3)" in check.sentence
    assert "Register COVARIANCE" in check.advice


def test_a_closed_port_is_explained(probe):
    """Nothing listens there."""
    (check,) = probe("destinations", destinations=destination(free_port()))
    assert (check.level, exit_code([check])) == ("FAIL", 2)
    assert "refuses the connection" in check.sentence


def test_a_peer_that_says_nothing_is_a_time_out(probe):
    """A listener that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (check,) = probe("destinations", destinations=destination(port), delivery={"timeout": 0.5})
    assert check.level == "FAIL"
    assert "PACS at 127.0.0.1" in check.sentence


def test_a_peer_whose_certificate_has_ended_is_explained(probe, receiver, tmp_path):
    """A receiver with an ended certificate, over TLS."""
    ended = Authority(tmp_path).issue(expired=True)
    port = receiver(*ended.for_dcmtk, "--ignore-peer-cert")
    tls = {"authorities": str(ended.authorities)}
    (check,) = probe("destinations", destinations=destination(port, tls=tls))
    assert check.level == "FAIL"
    assert "expired" in check.sentence
    assert "Renew the certificate of the peer" in check.advice


def test_our_own_certificate_that_has_ended_fails(probe, tmp_path):
    """The listener's certificate is told by its end, and by who signed it."""
    authority = Authority(tmp_path)
    checks = probe("tls", tls={"enabled": True, **authority.issue().files})
    assert exit_code(checks) == 0, checks
    checks = probe("tls", tls={"enabled": True, **authority.issue(expired=True).files})
    assert "ended on" in said(checks, "FAIL")


def test_a_certificate_of_a_stranger_is_told(probe, tmp_path):
    """A chain that does not lead to our authorities is a warning: peers will refuse it."""
    (tmp_path / "b").mkdir()
    files = {**Authority(tmp_path).issue().files, "authorities": Authority(tmp_path / "b").file}
    assert "knows nothing" in said(probe("tls", tls={"enabled": True, **files}), "WARN")


def test_a_name_without_an_address_fails(probe):
    """A host that no resolver knows."""
    checks = probe("dns", destinations=destination(104, host="pacs.invalid"))
    assert "pacs.invalid has no address" in said(checks, "FAIL")


def test_a_port_that_somebody_else_has_fails(probe):
    """Something that is not our node listens on our port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        checks = probe("ports", node={"port": other.getsockname()[1]})
    assert "is taken by something that is not our node" in said(checks, "FAIL")


def test_our_node_is_known_by_its_answer(probe, listen):  # noqa: F811
    """A real node on its port is ours, and takes an allowed caller."""
    node = {"port": listen(allowed_callers=("CT1",)).port, "allowed_callers": ["CT1"]}
    assert "is our node" in said(probe("ports", node=node), "OK")
    assert "answers C-ECHO of CT1" in said(probe("own-node", node=node), "OK")
    other = {**node, "ae_title": "OTHER"}
    assert "does not go by the name OTHER" in said(probe("own-node", node=other), "FAIL")


def test_a_node_with_tls_only_is_looked_for_on_its_tls_port(probe):
    """With the plain port closed the other one says whether the node runs."""
    sections = {"node": {"plain": False, "host": "127.0.0.1"}}
    with socket.create_server(("127.0.0.1", 0)) as secure:
        port = secure.getsockname()[1]
        tls = {"enabled": True, "port": port}
        assert f"127.0.0.1:{port} is open" in said(probe("own-node", tls=tls, **sections), "OK")
    assert "Nothing listens" in said(probe("own-node", tls=tls, **sections), "WARN")


def test_from_another_container_the_node_is_asked_by_its_name(probe, listen, monkeypatch):  # noqa: F811
    """Nothing listens beside `ops`: that says nothing of the node, unless its host is known."""
    monkeypatch.setattr("deploy.doctor.listener.in_container", lambda: True)
    port = listen().port
    elsewhere = {"node": {"host": "127.0.0.2", "port": port}}
    assert "heartbeat.host" in said(probe("own-node", **elsewhere), "WARN")
    assert "free: the node does not run in this container" in said(probe("ports", **elsewhere), "OK")
    known = probe("own-node", heartbeat={"host": "127.0.0.1"}, **elsewhere)
    assert "answers C-ECHO" in said(known, "OK")


@pytest.mark.parametrize(("contained", "level"), [(True, "OK"), (False, "FAIL")])
def test_a_missing_engine_is_no_defect_of_an_image_without_one(probe, monkeypatch, contained, level):
    """The image `ops` has no engine and says where one is; a machine that is to score must have it."""
    monkeypatch.setattr("deploy.doctor.scoring.in_container", lambda: contained)
    monkeypatch.setitem(sys.modules, "openvino", None)
    checks = probe("engine")
    assert "installed here" in said(checks, level)
    assert "defect" not in " ".join(one.advice for one in checks)


def test_a_spool_that_others_can_read_is_told(probe, tmp_path):
    """Films are for nobody else on the machine."""
    (tmp_path / "spool").mkdir(mode=0o755)
    (tmp_path / "spool").chmod(0o755)
    assert "0755" in said(probe("spool"), "WARN")
    (tmp_path / "spool").chmod(0o700)
    assert exit_code(probe("spool")) == 0


def test_a_full_disk_fails(probe, tmp_path):
    """Less room than is to be left."""
    checks = probe("disk", spool={"path": tmp_path, "minimum_free_bytes": 10**18})
    assert "A700" in said(checks, "FAIL")
    assert not list(tmp_path.glob(".doctor-*"))


def test_a_database_behind_a_migration_fails(probe, cluster):  # noqa: F811
    """PostgreSQL at an older schema is named with both revisions, and how to mend it; mended, all is well."""
    from alembic import command

    url = cluster.new_database()
    engine = make_engine(url)
    with transaction(engine, writes=True) as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    text = said(probe("database", database={"url": url}), "FAIL")
    assert "at 0002" in text
    assert "covariance audit roles" in text
    migrate.migrate(engine)
    engine.dispose()
    checks = probe("database", database={"url": url})
    assert "may change the audit trail" in said(checks, "WARN")  # the test logs in as a superuser
    assert exit_code(probe("clock", database={"url": url})) < 2


@pytest.mark.parametrize(("since", "status"), [("0001", "OK"), ("9001", "FAIL")])
def test_a_newer_schema_is_of_use_where_it_says_so(probe, tmp_path, since, status):
    """After a rollback of the code the schema is newer: good where it is compatible, else a failure."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    engine = make_engine(url)
    migrate.migrate(engine)
    with transaction(engine, writes=True) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9001'")
        connection.exec_driver_sql(f"UPDATE schema_compatibility SET compatible_since = '{since}'")
    engine.dispose()
    assert "at revision 9001" in said(probe("database", database={"url": url}), status)


def test_a_database_that_is_away_fails(probe):
    """A server that is not there."""
    url = f"postgresql+psycopg://nobody:hidden@127.0.0.1:{free_port()}/ledger"  # pragma: allowlist secret
    checks = probe("database", database={"url": url})
    assert exit_code(checks) == 2
    assert "hidden" not in json.dumps([one.sentence for one in checks])


def test_a_broker_that_is_away_fails(probe):
    """A Redis that is not there."""
    checks = probe("broker", queue={"url": f"redis://127.0.0.1:{free_port()}/0"})
    assert "does not answer" in said(checks, "FAIL")


@pytest.mark.parametrize(
    ("queues", "level", "sentence"),
    [
        (["score", "score.stat", "score.backfill"], "OK", "hears every lane"),
        (["score"], "FAIL", "covariance@old"),
    ],
)
def test_a_worker_without_lanes_is_found_when_rules_are_set(probe, worker_of, queues, level, sentence):
    """A worker of the version before hears one queue; a real one answers for it over a real broker."""
    rules = [{"lane": "stat", "calling_ae": "ED1"}]
    checks = probe("broker", queue={"url": worker_of(queues)}, lanes={"rules": rules})
    assert sentence in said(checks, level)


def test_the_engine_passes_its_parity_gate(probe):
    """The golden cases are replayed on this machine."""
    assert "golden cases" in said(probe("engine"), "OK")


def test_nat_is_known_by_both_ends():
    """A container reaches the hospital by NAT, and its neighbour on the bridge without."""
    assert is_translated("172.17.0.2", "10.1.2.3")
    assert not is_translated("172.17.0.2", "172.17.0.9")
    assert not is_translated("10.1.2.4", "10.1.2.3")


def test_json_has_every_check_and_the_exit_code(invoke, tmp_path):
    """`--json` is one document; settings that cannot be read are the only check and exit code 2."""
    done = invoke("doctor", "--json", "--only", "spool", "--only", "gpu")
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.exit_code
    assert {"spool", "gpu"} <= {one["name"] for one in document["checks"]}
    assert not list(tmp_path.iterdir())
    done = invoke("doctor", "--only", "nothing")
    assert done.exit_code == 2
    (tmp_path / "bad.toml").write_text("[node]\nprot = 1\n")
    done = invoke("--config", "bad.toml", "doctor")
    assert done.exit_code == 2
    assert "FAIL settings" in done.stdout
