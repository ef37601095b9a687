"""Every file of deploy/ is exercised by a test that is named here, or it is said why not and what shows it.

A Python file needs no line where a test has its name and names it or its command: `deploy/send.py` and
`tests/deploy/test_send.py`. Others have one. A file without a line fails, and so does a line without a file.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from tests.deploy import drift
from tests.deploy.drift import ROOT

EXERCISED = """
# file                                    test                                   what in the test does it
deploy/CAPACITY.md                        tests/deploy/test_capacity.py          deploy/CAPACITY.md
deploy/CONFORMANCE.md                     tests/deploy/test_conformance.py       STATEMENT.read_text()
deploy/covariance.toml                    tests/deploy/test_configuration.py     covariance.toml
deploy/*/README.md                        tests/deploy/test_pages.py             rglob("*.md")
deploy/adr/*.md                           tests/deploy/test_pages.py             "adr"
deploy/runbooks/[1-9]*.md                 tests/deploy/test_runbooks.py          glob("[0-9]*.md")
deploy/runbooks/access.md                 tests/dicom_node/test_access_runbook.py  "access.md"
deploy/compose/*.yaml                     tests/deploy/test_compose.py           glob("*.yaml")
deploy/compose/.gitignore                 tests/deploy/test_every_file.py        check-ignore
deploy/compose/make-secrets               tests/deploy/test_compose.py           "make-secrets"
deploy/compose/settings/*.toml            tests/deploy/test_compose.py           glob("*.toml")
deploy/compose/settings/orthanc.json      tests/deploy/test_compose.py           settings/orthanc.json
deploy/kubernetes/base/*.yaml             tests/deploy/test_kubernetes.py        kubernetes_validate.validate
deploy/kubernetes/base/covariance.toml    tests/deploy/test_kubernetes.py        covariance.toml
deploy/kubernetes/overlays/*/*.yaml       tests/deploy/test_kubernetes.py        overlays/*/kustomization.yaml
deploy/monitoring/prometheus.yml          tests/deploy/test_monitoring.py        "prometheus.yml"
deploy/monitoring/rules.yml               tests/deploy/test_monitoring.py        "rules.yml"
deploy/monitoring/rules_test.yml          tests/deploy/test_monitoring.py        "rules_test.yml"
deploy/monitoring/grafana/*.json          tests/deploy/test_monitoring.py        dashboard_queries()
deploy/containers/*.Containerfile         tests/deploy/test_containers.py        sorted(IMAGES)
deploy/containers/build                   tests/deploy/test_containers.py        deploy/containers/build
deploy/containers/uv.txt                  tests/deploy/test_containers.py        "uv.txt"
deploy/__init__.py                        tests/deploy/test_cli.py               covariance("--config"
deploy/__main__.py                        tests/deploy/conftest.py               "-m", "deploy"
deploy/audit.py                           tests/deploy/test_cli.py               "audit", "verify"
deploy/backup/__init__.py                 tests/deploy/test_backup.py            deploy.backup
deploy/backup/archive.py                  tests/deploy/test_backup.py            run_client(
deploy/backup/restore.py                  tests/deploy/test_backup.py            restore(
deploy/backup/write.py                    tests/deploy/test_backup.py            back_up(
deploy/broker.py                          tests/deploy/test_up.py                valkey
deploy/cli.py                             tests/deploy/test_cli.py               invoke("--version")
deploy/commands/__init__.py               tests/deploy/test_cli.py               invoke("status"
deploy/commands/configuration.py          tests/deploy/test_configuration.py     invoke("config"
deploy/commands/corrections.py            tests/deploy/test_corrections.py       run("recall"
deploy/commands/demonstration.py          tests/deploy/test_demo.py              "demo"
deploy/commands/diagnosis.py              tests/deploy/test_doctor.py            invoke("doctor"
deploy/commands/engines.py                tests/deploy/test_gpu_check.py         invoke("engine", "build")
deploy/commands/films.py                  tests/deploy/test_cli.py               "send", "film.dcm"
deploy/commands/keeping.py                tests/deploy/test_backup.py            "backup"
deploy/commands/models.py                 tests/deploy/test_models.py            invoke("model"
deploy/commands/services.py               tests/deploy/test_up.py                "deploy", "up"
deploy/commands/studies.py                tests/deploy/test_cli.py               invoke("show"
deploy/commands/upkeep.py                 tests/deploy/test_health.py            "migrate"
deploy/commands/workers.py                tests/integration/test_drain.py        "drain"
deploy/doctor/__init__.py                 tests/deploy/test_doctor.py            deploy.doctor
deploy/doctor/certificates.py             tests/deploy/test_doctor.py            probe("tls"
deploy/doctor/check.py                    tests/deploy/test_doctor.py            deploy.doctor.check
deploy/doctor/examine.py                  tests/deploy/test_doctor.py            deploy.doctor.examine
deploy/doctor/listener.py                 tests/deploy/test_doctor.py            probe("ports"
deploy/doctor/machine.py                  tests/deploy/test_doctor.py            probe("disk"
deploy/doctor/network.py                  tests/deploy/test_doctor.py            deploy.doctor.network
deploy/doctor/rejections.py               tests/deploy/test_doctor.py            (1,1,1)
deploy/doctor/scoring.py                  tests/deploy/test_doctor.py            probe("engine"
deploy/doctor/services.py                 tests/deploy/test_doctor.py            probe("database"
deploy/drain.py                           tests/integration/test_drain.py        "drain"
deploy/overlays.py                        tests/deploy/test_demo.py              overlays
deploy/overview.py                        tests/deploy/test_cli.py               invoke("show"
deploy/purge.py                           tests/deploy/test_cli.py               invoke("purge")
deploy/quarantine.py                      tests/deploy/test_corrections.py       "quarantine", "list"
deploy/recalls.py                         tests/deploy/test_corrections.py       run("recall"
deploy/reprocess.py                       tests/deploy/test_corrections.py       run("reprocess"
deploy/serve.py                           tests/integration/conftest.py          ("node", "worker", "deliver")
deploy/shadow.py                          tests/worker/test_shadow.py            deploy.shadow
deploy/wrap.py                            tests/deploy/test_score.py             pa.png
"""

ELSEWHERE = """
# file                                    why not here                             what shows it there
deploy/containers/debian-base             needs root and a Debian mirror         | make images
deploy/containers/install-locked          runs while an image is built           | make images
deploy/containers/install-covariance      runs while an image is built           | make images
deploy/containers/sbom.py                 needs the built images                 | make images-sbom
deploy/compose/settings/logins.sh         is of PostgreSQL's own image           | make images-smoke
deploy/runbooks/gpu.md                    needs an NVIDIA GPU                    | covariance gpu-check
deploy/runbooks/recovery.md               is the record of a run                 | make chaos
"""


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line and not line.startswith("#")]
    return [line.split(None, 2 if table is EXERCISED else 1) for line in lines]


def files() -> list[str]:
    """Those that git has or will have; in a copy without git, those that lie there."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"]
    listed = subprocess.run(
        listing, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    lying = (str(one.relative_to(ROOT)) for one in (ROOT / "deploy").rglob("*") if one.is_file())
    return sorted(one for one in listed or lying if "__pycache__" not in one and (ROOT / one).exists())


FILES = files()


def has_a_test_of_its_name(file: str) -> bool:
    """A test that is called as it is, and names it or the command that it is."""
    path = Path(file)
    test = ROOT / "tests/deploy" / f"test_{path.stem}.py"
    if path.suffix != ".py" or path.parent != Path("deploy") or not test.is_file():
        return False
    command = path.stem.replace("_", "-")
    named = rf"deploy\.{path.stem}\b|deploy import .*\b{path.stem}\b|\"{command}\""
    return re.search(named, test.read_text()) is not None


def lines_for(file: str) -> list[list[str]]:
    return [row for row in (*rows(EXERCISED), *rows(ELSEWHERE)) if PurePosixPath(file).match(row[0])]


@pytest.mark.parametrize("file", FILES)
def test_the_file_is_exercised_or_it_is_said_why_not(file):
    """Nothing is shipped that nobody has seen to work."""
    assert has_a_test_of_its_name(file) or lines_for(file), "give it a test, or a line in a table above"


@pytest.mark.parametrize(("pattern", "test", "does_it"), rows(EXERCISED))
def test_what_is_said_to_exercise_it_does(pattern, test, does_it):
    """The file is there, and the test, and in it what is named."""
    assert [file for file in FILES if PurePosixPath(file).match(pattern)], "no such file: take the line away"
    assert does_it in (ROOT / test).read_text()


@pytest.mark.parametrize(("file", "told"), rows(ELSEWHERE))
def test_what_shows_it_elsewhere_can_be_typed(file, told):
    """The file is there, a reason, and a command that exists."""
    assert file in FILES, "no such file: take the line away"
    why, _, command = (part.strip() for part in told.partition("|"))
    assert why
    program, *words = command.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        drift.refuse_unknown_command([program, *words])


def test_secrets_that_are_made_are_not_committed():
    """What `make-secrets` writes beside the compose files is passed over by git."""
    done = subprocess.run(
        ["git", "check-ignore", "--quiet", "--no-index", "deploy/compose/secrets/database__url"],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
