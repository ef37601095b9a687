"""Capacity by formula: the queueing part against known values and a simulation, the rest against the page."""

from __future__ import annotations

import heapq
import random
import re
from math import exp
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.capacity import Cost, Demand, Engine, late_share, plan, waiting_probability
from deploy.cli import app
from deploy.commands.upkeep import EngineKind
from dicom_node.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("load", "servers", "expected"),
    [(0.5, 1, 0.5), (1.0, 2, 1 / 3), (2.0, 3, 4 / 9), (8.0, 10, 0.40918)],
)
def test_the_probability_of_waiting_is_erlangs(load, servers, expected):
    """Erlang's C formula: one server waits as often as it is busy, two at half load a third of the time."""
    assert waiting_probability(load, servers) == pytest.approx(expected, rel=1e-4)


def test_one_server_waits_as_the_textbook_says():
    """M/M/1: P(W > t) = rho * exp(-(mu - lambda) * t)."""
    assert late_share(0.5, 1.0, 1, 3.0) == pytest.approx(0.5 * exp(-1.5))


def test_a_simulated_queue_waits_as_the_formula_says():
    """Two hundred thousand arrivals at three servers, 80% busy: the share that waits longer than a second."""
    source, rate, service, servers, limit = random.Random(5), 2.4, 1.0, 3, 1.0
    free, now, late, arrivals = [0.0] * servers, 0.0, 0, 200_000
    for _ in range(arrivals):
        now += source.expovariate(rate)
        begins = max(now, heapq.heappop(free))
        heapq.heappush(free, begins + source.expovariate(1 / service))
        late += begins - now > limit
    assert late / arrivals == pytest.approx(late_share(rate, service, servers, limit), rel=0.06)


@given(
    load=st.floats(0.01, 200),
    more=st.integers(1, 50),
)
def test_more_servers_wait_less(load, more):
    """A probability, and never larger with more servers; no overflow for hundreds."""
    servers = int(load) + more
    one, next_one = waiting_probability(load, servers), waiting_probability(load, servers + 1)
    assert 0 <= next_one <= one <= 1


@given(per_day=st.floats(1, 2_000_000), engine=st.sampled_from(Engine))
def test_a_plan_keeps_its_promise(per_day, engine):
    """No core busier than three quarters, one in twenty late at the most, and one core fewer would not do."""
    demand = Demand(studies_per_day=per_day)
    found, cost = plan(demand, engine), Cost.of(engine)
    service = cost.worker + cost.engine
    assert found.busy <= 0.75 + 1e-9
    assert found.late <= 0.05
    if found.worker_cores > 1:
        fewer = found.worker_cores - 1
        load = found.peak_per_second * service
        assert load / fewer > 0.75 or late_share(found.peak_per_second, service, fewer, 10) > 0.05
    assert found.spare_cores < found.worker_cores
    assert (found.cards > 0) == (engine is Engine.GPU)


def test_twice_the_studies_are_twice_the_disk():
    """The spool grows with studies, films, megabytes and days, and has a fifth to spare."""
    one, two = plan(Demand(studies_per_day=1000)), plan(Demand(studies_per_day=2000))
    assert two.spool_gigabytes - 1 == pytest.approx(2 * (one.spool_gigabytes - 1))
    assert one.spool_gigabytes == pytest.approx(1000 * 1.5 * 10 * 30 / 1000 * 1.2 + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"studies_per_day": 0},
        {"films_per_study": -1},
        {"peak_share": 0.01},
        {"peak_share": 2},
        {"keep_days": -1},
        {"studies_per_day": float("nan")},
        {"studies_per_day": float("inf")},
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(wrong):
    """ConfigurationError, and exit code 2 for who typed it."""
    with pytest.raises(ConfigurationError):
        Demand(**{"studies_per_day": 1000, **wrong})


def test_more_than_a_site_is_refused_at_once():
    """However much more: the cores are not tried one by one."""
    with pytest.raises(ConfigurationError, match="plan several sites"):
        plan(Demand(studies_per_day=1e16))


def test_the_costs_are_those_of_the_readme():
    """The page of the benchmark and the function say the same figures."""
    text = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(
        r"worker (\d+) \((\d+) of them the engine\), node (\d+), PACS stand-in \d+, deliverer (\d+)", text
    )
    assert found
    worker, engine, node, deliver = (int(one) / 1000 for one in found.groups())
    assert Cost() == Cost(node=node, worker=round(worker - engine, 6), engine=engine, deliver=deliver)
    without = re.search(r"without bf16 \(AVX2 only\) it takes (\d+) CPU-ms a film instead of (\d+)", text)
    assert without
    assert Cost.of(Engine.CPU_WITHOUT_BF16).engine == int(without[1]) / 1000


def test_the_command_offers_the_engines_of_the_function():
    """Their names stand in two places, because the command loads nothing before it runs."""
    assert [one.value for one in EngineKind] == [one.value for one in Engine]


def test_the_table_of_the_page_is_what_the_command_says():
    """deploy/CAPACITY.md holds the very lines that the function gives."""
    page = (ROOT / "deploy/CAPACITY.md").read_text()
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", page, re.M
    )
    assert len(rows) >= 5
    for row in rows:
        per_day, rate, cpu, avx2, other, _, terabytes = (float(one.replace(",", "")) for one in row)
        demand = Demand(studies_per_day=per_day)
        found, slow = plan(demand), plan(demand, Engine.CPU_WITHOUT_BF16)
        assert (cpu, avx2, other) == (found.worker_cores, slow.worker_cores, found.other_cores)
        assert int(row[5]) == plan(demand, Engine.GPU).worker_cores
        assert rate == pytest.approx(found.peak_per_second, abs=0.006)
        assert terabytes == pytest.approx(found.spool_gigabytes / 1000, abs=0.06)


def test_the_command_prints_it():
    """`covariance capacity --studies-per-day N`, in words."""
    done = CliRunner().invoke(app, ["capacity", "--studies-per-day", "20000", "--engine", "gpu"])
    assert done.exit_code == 0
    assert re.search(r"workers +\d+ cores?, \d+% busy", done.output)
    assert "card" in done.output
