"""What ops see: a real stack, scraped by a real Prometheus that evaluates the rules that we ship."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset, dcmwrite

from deploy.pacs import StandInPacs
from dicom_node.metrics import OTHER
from dicom_node.store_scu import Peer, SendItem, StoreAssociation
from dicom_node.tracing import trace_id
from tests.deploy.conftest import _eventually, clean_environment
from tests.dicom_node.collector import Collector, collecting
from tests.integration.system import Program, as_toml, eventually, free_port
from worker.heartbeat import heartbeat_uids
from worker.ledger import Ledger, open_ledger
from worker.phantom import phantom_dataset
from worker.settings import Settings

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "covariance.json"
PROCESSES = ("node", "worker", "deliver")
METRIC = re.compile(r"\b(?:covariance|process)_[a-z0-9_]+\b")
BEAT_SECONDS = 6.0


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((MONITORING / "rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@dataclass
class Site:
    """A running stack with a stand-in PACS, and the study that it was sent."""

    settings: Settings
    ports: dict[str, int]
    pacs: StandInPacs
    ledger: Ledger
    output: Path
    film: Dataset
    collector: Collector

    def get(self, process: str, path: str) -> tuple[int, str]:
        return get(f"http://127.0.0.1:{self.ports[process]}{path}")

    def metrics(self, process: str) -> str:
        return self.get(process, "/metrics")[1]

    def value(self, process: str, name: str, **labels: str) -> float:
        """The sum of the series of that name with these labels."""
        families = text_string_to_metric_families(self.metrics(process))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def names(self) -> set[str]:
        """Every name that a query may use, with or without series."""
        found: set[str] = set()
        for process in PROCESSES:
            for line in self.metrics(process).splitlines():
                if line.startswith("# TYPE "):
                    name, kind = line.split()[2:4]
                    ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
                    found |= {name + end for end in ends}
        return found

    def log(self) -> list[tuple[str, dict[str, Any]]]:
        """Process and event of every line."""
        events = []
        for line in self.output.read_text().splitlines():
            process, bar, event = line.partition(" │ ")
            if bar and event.startswith("{"):
                events.append((process.strip(), json.loads(event)))
        return events


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """`covariance up` with everything that can be seen, after one study has gone the whole way."""
    folder = tmp_path_factory.mktemp("site")
    port = free_port()
    ports = {name: free_port() for name in PROCESSES}
    peers = {"COVARIANCE": ("127.0.0.1", port)}
    with collecting() as collector, StandInPacs(folder / "pacs", peers=peers) as pacs:
        destination = {"name": "pacs", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        tables: dict[str, dict[str, Any]] = {
            "node": {"port": port, "allowed_callers": ["CT1", "COVARIANCE-BEAT", "STANDIN"]},
            "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 1000},
            "assembly": {"quiet_seconds": 0.5},
            "queue": {"embedded_path": str(folder / "valkey")},
            "database": {"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
            "worker": {"engine_cache": str(folder / "engine")},
            "log": {"style": "json"},
            "metrics": {f"{name}_port": number for name, number in ports.items()},
            "heartbeat": {"every_minutes": BEAT_SECONDS / 60},
            "tracing": {"endpoint": collector.endpoint},
        }
        file = folder / "covariance.toml"
        file.write_text(as_toml(tables, [destination]))
        settings = Settings(**{**tables, "destinations": [destination]})  # type: ignore[arg-type]
        output = folder / "output"
        command = [sys.executable, "-P", "-m", "deploy", "--config", str(file), "up"]
        up = Program(command, output, environment=clean_environment(), directory=folder).start()
        try:
            _eventually(lambda: "CoVariance is up" in output.read_text(), what="the stack is up", seconds=280)
            film = phantom_dataset(5, salt="monitoring", rows=640, columns=512)
            send(film, folder, port)
            with open_ledger(settings, migrate=False) as ledger:
                one = Site(settings, ports, pacs, ledger, output, film, collector)
                proven = ("deliver", "covariance_deliveries_total")
                _eventually(
                    lambda: one.value(*proven, status="committed") == 2,
                    what="the results are proven",
                    seconds=200,
                )
                yield one
        finally:
            up.stop()


def send(film: Dataset, folder: Path, port: int) -> None:
    path = folder / "film.dcm"
    dcmwrite(path, film, enforce_file_format=True)
    item = SendItem(
        sop_class_uid=film.SOPClassUID,
        sop_instance_uid=film.SOPInstanceUID,
        transfer_syntax_uid=film.file_meta.TransferSyntaxUID,
        path=path,
    )
    peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="CT1", timeout=30.0)
    with StoreAssociation(peer, [item]) as association:
        assert association.send(item).status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
)
def test_promtool_accepts_what_we_ship(program, arguments):
    """The real promtool accepts scrape file and rules, and every case of the rules holds."""
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_and_words():
    """No alert is shipped that is not seen to fire, or that does not say what to do."""
    cases = (MONITORING / "rules_test.yml").read_text()
    for rule in rules():
        assert f"name: {rule['alert']} fires" in cases
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_rules_and_dashboard_name_what_a_stack_exposes(site):
    """Every metric in a rule or a panel is one that a running stack tells."""
    used = {
        name
        for text in (*dashboard_queries(), *(r["expr"] for r in rules()))
        for name in METRIC.findall(text)
    }
    assert used
    assert used - site.names() == set()


def test_one_study_is_counted_once_in_each_place(site):
    """One film of one study: received, scored, stored twice (SR and heatmap) and proven twice."""

    def tells(process: str, name: str, expected: float, **labels: str) -> None:
        # What the ledger tells is asked for at most once in ten seconds.
        eventually(lambda: site.value(process, name, **labels) == expected, what=f"{name} is {expected}")

    tells("node", "covariance_received_objects_total", 1, sender="CT1", outcome="new")
    tells("worker", "covariance_decisions_total", 1)
    tells("worker", "covariance_score_count", 1)
    tells("deliver", "covariance_deliveries_total", 2, destination="pacs", status="stored")
    tells("deliver", "covariance_commitment_lag_seconds_count", 2)
    tells("deliver", "covariance_oldest_unproven_seconds", 0)
    tells("worker", "covariance_parity_gate_passed", 1)
    bundle = site.settings.worker.bundle / "manifest.json"
    tells("worker", "covariance_bundle_info", 1, version=json.loads(bundle.read_text())["version"])
    for station in ("register", "claim", "decode", "infer", "explain", "encode", "keep", "record"):
        assert site.value("worker", "covariance_station_seconds_count", station=station) >= 1
    for station in ("store", "commit"):
        assert site.value("deliver", "covariance_station_seconds_count", station=station) >= 1


def test_everything_is_alive_and_ready(site):
    """Each process says that it lives and can do its work."""
    for process in PROCESSES:
        assert site.get(process, "/healthz") == (200, "alive\n")
        assert site.get(process, "/readyz") == (200, "ready\n")
        assert site.get(process, "/")[0] == 404


def test_metrics_hold_no_uid_and_no_patient(site):
    """No study, object or person is named, and no sender but those of the settings."""
    told = "\n".join(site.metrics(process) for process in PROCESSES)
    film = site.film
    said = (
        film.StudyInstanceUID,
        film.SOPInstanceUID,
        film.PatientID,
        film.AccessionNumber,
        "PHANTOM",
        "2.25.",
    )
    assert [word for word in said if word in told] == []
    senders = set(re.findall(r'sender="([^"]*)"', told))
    assert senders == {"CT1", "COVARIANCE-BEAT", "STANDIN", OTHER}


def test_the_audit_trail_is_walked_to_its_end(site):
    """The deliverer verifies the trail by itself."""
    walked = ("deliver", "covariance_audit_verified_events")
    _eventually(lambda: site.value(*walked) > 10, what="the walk has come to the end of the trail")
    assert site.value("deliver", "covariance_audit_chain_intact") == 1


def test_heartbeat_comes_through_and_stays_from_the_pacs(site):
    """A beat is recorded every few seconds; the PACS holds nothing of it, and no score counts it."""
    turnaround = ("deliver", "covariance_heartbeat_turnaround_seconds")
    _eventually(lambda: site.value(*turnaround) > 0, what="a heartbeat has come through")
    assert site.value("deliver", "covariance_heartbeat_age_seconds") < 60
    beats = [one.study_instance_uid for one in site.ledger.studies(1000)]
    beats.remove(site.film.StudyInstanceUID)
    record = site.ledger.study(beats[-1])
    assert record is not None
    assert heartbeat_uids(site.settings).own(beats[-1], [image.sop_instance_uid for image in record.images])
    assert record.results[0].outputs == ()
    assert {held.study_instance_uid for held in site.pacs.held()} == {site.film.StudyInstanceUID}
    assert site.value("worker", "covariance_decisions_total") == 1
    assert site.ledger.volumes([24], weeks=0, without=["COVARIANCE-BEAT"]) == {"CT1": {24: [1]}}


def test_one_id_leads_through_all_logs(site):
    """The study's UID stands in every line about it, from the C-STORE to the proof, in all processes."""
    mine = [(p, e["event"]) for p, e in site.log() if e.get("study") == site.film.StudyInstanceUID]
    assert ("node", "object_filed") in mine
    assert ("node", "study_released") in mine
    assert ("worker", "study_claimed") in mine
    assert ("worker", "study_scored") in mine
    assert mine.count(("deliver", "object_stored")) == 2
    assert mine.count(("deliver", "object_proven")) == 2


def test_one_trace_leads_through_all_processes(site):
    """The collector gets the study's way from all three processes as one trace."""
    mine = f"{trace_id(site.film.StudyInstanceUID):032x}"

    def spans() -> set[tuple[str, str]]:
        return {(service, name) for service, name, trace in site.collector.spans if trace == mine}

    wanted = {
        ("covariance-node", "receive"),
        ("covariance-deliver", "store"),
        ("covariance-deliver", "prove"),
    }
    stations = ("register", "claim", "wait", "decode", "infer", "explain", "encode", "keep", "record")
    wanted |= {("covariance-worker", name) for name in stations}
    _eventually(lambda: wanted <= spans(), what="every span of the study has come")


def test_prometheus_scrapes_it_and_evaluates_the_rules(site, program, tmp_path):
    """A real Prometheus finds all targets up, every rule healthy and every query of the dashboard sound."""
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in configuration["scrape_configs"]:
        process = job["job_name"].removeprefix("covariance-")
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{site.ports[process]}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (tmp_path / "rules.yml").write_text((MONITORING / "rules.yml").read_text())
    port = free_port()
    command = [program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    server = Program(command, tmp_path / "log").start()

    def ask(path: str, **query: str) -> Any:
        try:
            status, body = get(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        except OSError:
            return None
        return json.loads(body) if status in (200, 400) else None

    def all_up() -> bool:
        targets = (ask("targets") or {"data": {"activeTargets": []}})["data"]["activeTargets"]
        return len(targets) == 3 and all(one["health"] == "up" for one in targets)

    def all_evaluated() -> list[dict[str, Any]]:
        found = [rule for group in ask("rules")["data"]["groups"] for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    try:
        _eventually(all_up, what="Prometheus has scraped all three processes")
        evaluated = _eventually(all_evaluated, what="Prometheus has evaluated every rule")
        assert {rule["name"]: rule["health"] for rule in evaluated} == {r["alert"]: "ok" for r in rules()}
        assert {rule["name"] for rule in evaluated if rule["state"] == "firing"} <= {
            "CovarianceStudiesQuarantined"
        }
        for expression in dashboard_queries():
            answer = ask("query", query=expression.replace("$__rate_interval", "1m"))
            assert answer["status"] == "success", (expression, answer)
        seen = ask("query", query="sum(covariance_decisions_total)")["data"]["result"]
        assert [one["value"][1] for one in seen] == ["1"]
    finally:
        server.stop()
