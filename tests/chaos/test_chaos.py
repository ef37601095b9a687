"""The short form of `make chaos`: real processes are broken, and nothing is lost or there twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import phases
from tests.chaos.__main__ import perform
from tests.chaos.run import Run
from tests.chaos.stack import make_stack

SEED = 20261124
# A minute on an idle machine; a worker alone may need one to start where others compile.
PATIENCE = pytest.mark.timeout(1800)


@PATIENCE
def test_nothing_is_lost_and_nothing_is_twice(tmp_path, program):
    """After failpoints, SIGKILLs, a frozen worker and an emptied broker the oracle finds no violation."""
    program("redis-server")
    with Run(make_stack(tmp_path), random.Random(SEED), print) as run:
        perform(run, short=True, kills=10, outage=5.0)
        assert run.violations == []
        assert run.sent()


@PATIENCE
def test_nothing_is_lost_with_postgresql(tmp_path, program):
    """Killed backends, a killed server and a time without any: the node receives, and nothing is lost."""
    program("redis-server")
    program("postgres", *map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))
    with Run(make_stack(tmp_path, database="postgresql"), random.Random(SEED), print) as run:
        phases.kills(run, 8, 1.0, only=("database", "deliver"))
        phases.database(run, 1, 5.0)
        assert run.violations == []
        assert run.sent()
