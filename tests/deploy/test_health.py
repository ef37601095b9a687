"""`covariance health` and `covariance migrate`: what HEALTHCHECK, probes and the migration job run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploy.health import ask
from dicom_node.errors import ConfigurationError, CovarianceError, Retryable
from tests.integration.system import COVARIANCE, Program, accepts, as_toml, eventually, free_port
from tests.worker.ledger.test_migrate import HEAD, newer  # noqa: F401 (a fixture)
from worker.settings import Settings


def settings(folder: Path, port: int, **node: object) -> Settings:
    return Settings(
        node={"port": port, **node},
        database={"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
        queue={"url": f"redis://127.0.0.1:{free_port()}/0"},
    )


@pytest.fixture
def node(tmp_path):
    """`node(**section)` runs a node with these settings and returns them."""
    running = []

    def start(**section: object) -> Settings:
        port = free_port()
        file = tmp_path / "covariance.toml"
        tables = {"node": {"port": port, **section}, "spool": {"path": str(tmp_path / "spool")}}
        file.write_text(as_toml(tables, []))
        running.append(
            Program([COVARIANCE, "--config", str(file), "node"], tmp_path / "log", directory=tmp_path).start()
        )
        eventually(lambda: accepts(port), what="the node listens")
        return settings(tmp_path, port, **section)

    yield start
    for one in running:
        one.stop()


def test_a_node_that_takes_anyone_is_asked_by_c_echo(node):
    """The answer comes from the association, not only from the port."""
    assert ask(node(), "node") == "COVARIANCE answers C-ECHO"


def test_a_node_that_takes_few_is_only_asked_for_its_port(node, tmp_path):
    """The log tells of callers who were rejected: the health check is not among them."""
    restricted = node(allowed_callers=["CT1"])
    assert ask(restricted, "node") == f"port {restricted.node.port} is open"
    lines = (tmp_path / "log").read_text().splitlines()
    assert not any("rejected" in line for line in lines)
    # There is no broker here, and the node says so now and then.
    assert [line for line in lines if "warning" in line and "broker_away" not in line] == []


@pytest.mark.parametrize("callers", [(), ("CT1",)])
def test_a_node_that_is_away_is_said_to_be(tmp_path, callers):
    """Exit code 1, and a sentence."""
    with pytest.raises(Retryable):
        ask(settings(tmp_path, free_port(), allowed_callers=callers), "node")


def test_the_deliverer_works_once_the_schema_is_there(tmp_path):
    """Before the migration it cannot work, and after it can; the command does it, and may do it again."""
    mine = settings(tmp_path, free_port())
    with pytest.raises(ConfigurationError):
        ask(mine, "deliver")
    environment = {**os.environ, "COVARIANCE_DATABASE__URL": mine.database.url}
    for _ in range(2):
        done = subprocess.run(
            [COVARIANCE, "migrate"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "schema" in ask(mine, "deliver")


def test_a_migration_that_breaks_older_programs_waits_for_a_word(invoke, newer):  # noqa: F811
    """`covariance migrate` refuses it with exit code 2, and takes it where all are said to be stopped."""
    assert invoke("migrate").exit_code == 0
    with newer(None):
        refused = invoke("migrate")
        assert (refused.exit_code, "--all-stopped" in refused.stderr) == (2, True)
        assert invoke("migrate", "--all-stopped").exit_code == 0
    assert "run the version that made it" in invoke("migrate").stderr


def test_after_a_rollback_migrate_says_that_the_schema_is_newer(invoke, newer):  # noqa: F811
    """It is no failure: this version works with it."""
    invoke("migrate")
    with newer(HEAD):
        invoke("migrate")
    done = invoke("migrate")
    assert (done.exit_code, "of a newer version" in done.stdout) == (0, True)


def test_a_worker_without_a_broker_is_not_ready(tmp_path):
    """It says so within seconds."""
    mine = settings(tmp_path, free_port())
    subprocess.run(
        [COVARIANCE, "migrate"],
        env={**os.environ, "COVARIANCE_DATABASE__URL": mine.database.url},
        check=True,
        capture_output=True,
    )
    with pytest.raises(CovarianceError, match="broker"):
        ask(mine, "worker")
