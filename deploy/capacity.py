"""How many cores and how much disk a number of studies a day needs: `deploy/CAPACITY.md` as a function.

The costs are those of `make bench` on one kind of machine; `Cost` takes others. The queue is taken as M/M/c:
films come independently of each other, each keeps one core busy, and whoever finds all cores busy waits. Real
service times vary less than exponential ones, so that the waits are those of a bad day.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum

from dicom_node.errors import ConfigurationError

_DAY_SECONDS = 86_400
_HOUR_SECONDS = 3_600
_LATE_SHARE = 0.05
"""Share of the studies of the busiest hour that may wait longer than is asked for."""
_BUSIEST = 0.75
"""No core is planned to be busier, however short the waits: what is not in the benchmark needs room, too."""
_MOST_CORES = 4096


class Engine(StrEnum):
    """What the model runs on."""

    CPU = "cpu"
    CPU_WITHOUT_BF16 = "cpu-avx2"
    GPU = "gpu"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one film costs, in core-seconds; the figures of README, "Speed"."""

    node: float = 0.026
    worker: float = 0.090
    """Without the engine: read, decode, prepare, explain, encode, record."""
    engine: float = 0.030
    deliver: float = 0.011

    @classmethod
    def of(cls, engine: Engine) -> Cost:
        """The cost with that engine. A GPU takes the engine's part from the cores."""
        return {
            Engine.CPU: cls(),
            Engine.CPU_WITHOUT_BF16: cls(engine=0.089),
            Engine.GPU: cls(engine=0.0),
        }[engine]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What comes, and how long it may take."""

    studies_per_day: float
    films_per_study: float = 1.5
    film_megabytes: float = 10.0
    """Size as it is sent (10^6 bytes)."""
    peak_share: float = 0.12
    """Share of the day's studies that come in its busiest hour; 1/24 would be a day without hours."""
    keep_days: float = 30.0
    """`retention.keep_days`."""
    wait_seconds: float = 10.0
    """All but one in twenty of the studies of the busiest hour are begun within this."""

    def __post_init__(self) -> None:
        told = asdict(self)
        if not all(map(math.isfinite, told.values())):
            raise ConfigurationError("What comes must be numbers, and not without an end.")
        if self.studies_per_day <= 0 or self.films_per_study <= 0 or self.wait_seconds <= 0:
            raise ConfigurationError("Studies a day, films and seconds of waiting must be more than nothing.")
        if self.film_megabytes < 0 or self.keep_days < 0:
            raise ConfigurationError("Megabytes and days cannot be less than nothing.")
        if not 1 / 24 <= self.peak_share <= 1:
            raise ConfigurationError("The share of the busiest hour lies between 1/24 (0.042) and 1.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What it takes."""

    peak_per_second: float
    """Films a second in the busiest hour."""
    worker_cores: int
    spare_cores: int
    """Worker cores that may be lost, a host for example, before the busiest hour no longer gets done."""
    other_cores: int
    """For node and deliverer together."""
    cards: int
    busy: float
    """Share of the busiest hour in which a worker core is at work."""
    late: float
    """Share of its studies that wait longer than asked."""
    catch_up_seconds: float
    """Until an hour's stop in the busiest hour has been made good."""
    spool_gigabytes: float
    network_megabits: float
    """Into the node in the busiest hour, on average."""


def plan(demand: Demand, engine: Engine = Engine.CPU, cost: Cost | None = None) -> Plan:
    """The smallest machine that keeps the waits of the busiest hour.

    Raises:
        ConfigurationError: it would have more than 4,096 cores.
    """
    cost = cost or Cost.of(engine)
    films_per_day = demand.studies_per_day * demand.films_per_study
    rate = films_per_day * demand.peak_share / _HOUR_SECONDS
    service = cost.worker + cost.engine
    cores = _cores(rate, service, demand.wait_seconds)
    load = rate * service
    gigabytes = films_per_day * demand.film_megabytes * demand.keep_days / 1000
    return Plan(
        peak_per_second=rate,
        worker_cores=cores,
        spare_cores=max(cores - math.floor(load) - 1, 0),
        other_cores=max(math.ceil(rate * (cost.node + cost.deliver) / _BUSIEST), 1),
        # No card is in the benchmark. One is taken to be as fast as a core of it, which every card beats.
        cards=max(math.ceil(rate * Cost().engine / _BUSIEST), 1) if engine is Engine.GPU else 0,
        busy=load / cores,
        late=late_share(rate, service, cores, demand.wait_seconds),
        catch_up_seconds=_HOUR_SECONDS * load / (cores - load),
        # A fifth above: below `spool.minimum_free_bytes` every C-STORE is refused.
        spool_gigabytes=gigabytes * 1.2 + 1,
        network_megabits=rate * demand.film_megabytes * 8,
    )


def _cores(rate: float, service: float, wait: float) -> int:
    cores = max(math.ceil(rate * service / _BUSIEST), 1)
    while cores <= _MOST_CORES and late_share(rate, service, cores, wait) > _LATE_SHARE:
        cores += 1
    if cores > _MOST_CORES:
        raise ConfigurationError(f"That takes more than {_MOST_CORES} cores: plan several sites.")
    return cores


def waiting_probability(load: float, servers: int) -> float:
    """Erlang C: the probability that who comes finds all servers busy.

    Args:
        load: arrivals in a service time, in erlangs.
        servers: how many serve; 1.0 is returned where they cannot keep up.
    """
    if load >= servers:
        return 1.0
    blocked = 1.0
    for number in range(1, servers + 1):
        # Erlang B by its recurrence: no factorial that overflows.
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def late_share(rate: float, service: float, servers: int, seconds: float) -> float:
    """The share of arrivals that wait longer than `seconds`: C(c, a) * exp(-(c - a) * t / S)."""
    load = rate * service
    if load >= servers:
        return 1.0
    return waiting_probability(load, servers) * math.exp(-(servers - load) * seconds / service)


def print_plan(demand: Demand, engine: Engine) -> None:
    """Say it to people."""
    from rich.console import Console  # noqa: PLC0415 (the function is used without a screen)

    found = plan(demand, engine)
    console = Console(highlight=False, soft_wrap=True)
    rows = [
        (
            "busiest hour",
            f"{found.peak_per_second:.2f} films/s, {found.network_megabits:.0f} Mbit/s into the node",
        ),
        (
            "workers",
            f"{_cores_of(found.worker_cores)}, {found.busy:.0%} busy; {found.spare_cores} may be lost",
        ),
        ("node, deliverer", _cores_of(found.other_cores)),
        *(
            [("GPU", f"{found.cards} card or slice at most; measure yours with `make bench`")]
            if found.cards
            else []
        ),
        ("waiting", f"{found.late:.1%} of the studies longer than {demand.wait_seconds:g} s"),
        ("after a stop", f"of an hour, all is made good in {found.catch_up_seconds / 60:.0f} minutes"),
        ("spool", f"{found.spool_gigabytes:,.0f} GB for {demand.keep_days:g} days"),
    ]
    for name, text in rows:
        console.print(f"{name:<16} {text}")
    console.print(
        "From the benchmark of one machine (deploy/CAPACITY.md): plan, then measure your own.", style="dim"
    )


def _cores_of(count: int) -> str:
    return f"{count} {'core' if count == 1 else 'cores'}"
