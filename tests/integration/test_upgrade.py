"""Two versions under load: an upgrade process by process, and back again, lose no study and score none twice.

The older version is this checkout. The newer one is a copy of it with one migration more and a column that it
fills, so that whatever the next migration will be, the ways there and back are known to work.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import create_engine, text

from tests.chaos.run import IN_FLIGHT, Run
from tests.chaos.stack import OURS, Stack, make_stack
from tests.conftest import ROOT
from tests.integration.system import COVARIANCE, accepts
from worker.ledger import migrate

SEED = 20261126
OLDER, NEWER = "98.0", "99.0"
HEAD = migrate._lineage()[-1].revision
_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9001", "{HEAD}", None, None
compatible_since = "{HEAD}"


def upgrade():
    op.add_column("images", sa.Column("registered_by", sa.Text(), nullable=True))
    op.create_index("ix_images_registered_by", "images", ["registered_by"])
"""
_COLUMN = '\nImage.registered_by = mapped_column(Text(), default="newer", index=True)\n'


def copy_of_the_code(folder: Path, version: str) -> dict[str, str]:
    """A copy that calls itself by a version; the environment in which programs run it."""
    for package in ("dicom_node", "worker", "training", "deploy"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    told = folder / f"covariance-{version}.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: covariance\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def newer_copy(folder: Path) -> dict[str, str]:
    """The next version: it has a migration more, and fills its column."""
    environment = copy_of_the_code(folder, NEWER)
    (folder / "worker/ledger/migrations/versions/9001_trial.py").write_text(_MIGRATION)
    with (folder / "worker/ledger/models.py").open("a") as models:
        models.write(_COLUMN)
    return environment


def command(stack: Stack, environment: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(
        [COVARIANCE, "--config", str(stack.file), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def change(run: Run, name: str, environment: dict[str, str]) -> None:
    """One process to another version, while films go on; then more than what was under way goes through."""
    run.say(f"{name} to {environment['PYTHONPATH']}")
    run.stack.renew(name, environment)
    run.wait(lambda: accepts(run.stack.port), 120, "the node listens")
    run.flow(IN_FLIGHT + 2)


def registered_by(stack: Stack) -> list[str | None]:
    """Which version registered the images, in their order; None is the older, which knows no such column."""
    engine = create_engine(stack.settings.database.url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT registered_by FROM images ORDER BY id")).scalars().all()
    engine.dispose()
    return [name for name, _ in groupby(found)]


@pytest.mark.timeout(1800)  # workers start four times, which may take a minute where others compile
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_an_upgrade_and_a_rollback_under_load_lose_nothing(tmp_path, program, database):
    """Migration, worker, deliverer, node, and all the way back on the newer schema, while films come."""
    program("redis-server")
    if database == "postgresql":
        program("postgres", *map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))
    older, newer = copy_of_the_code(tmp_path / "older", OLDER), newer_copy(tmp_path / "newer")
    stack = make_stack(tmp_path / "stack", database=database)
    for name in OURS:
        stack.programs[name].environment = older
    with Run(stack, random.Random(SEED), print) as run:
        with run.load():
            run.flow(IN_FLIGHT + 2)
            assert "this version's schema" in command(stack, newer, "migrate")
            run.flow(IN_FLIGHT + 2)  # the older programs go on
            for name in ("worker", "deliver", "node"):
                change(run, name, newer)
            for name in ("node", "deliver", "worker"):
                change(run, name, older)
            assert "a newer version" in command(stack, older, "migrate")
        run.settle("upgrade and rollback")
        assert run.violations == []
        assert registered_by(stack) == [None, "newer", None]
        made_by = {dcmread(path).SoftwareVersions for path in (stack.folder / "pacs").glob("*/*.dcm")}
        assert made_by == {OLDER, NEWER}
        assert set(stack.restarts) == set(OURS)
        assert set(stack.restarts.values()) == {2}, "a process ended that nobody had ended"
