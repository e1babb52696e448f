"""Which faults a seed brings, how often, and until when; and the count of what really happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

__all__ = ["KINDS", "POINTS", "Plan", "Weather", "weather_of"]

KINDS = (
    # The network.
    "message dropped",
    "message duplicated",
    "messages reordered",
    "message delayed",
    "reply lost after its effect",
    "transfer cut",
    "partition, both ways",
    "partition, to the server only",
    "partition, from the server only",
    # Processes and machines.
    "server process killed",
    "server power failure",
    "node process killed",
    "node power failure",
    "node stopped by its operator",
    "worker process ended",
    "site slow",
    # Disks and clocks.
    "torn write",
    "slow disk",
    "disk error",
    "disk full",
    "database error",
    "clock jumped",
    # Servers.
    "second server refused",
    "second server took over",
    "server put back from a backup",
    # Sites.
    "site left",
    "site rejoined",
    "site equivocated",
    "site replayed",
    "site sent what is no update",
)
"""All kinds of faults; each must be reached."""

_DISK = (
    *("write", "append", "torn", "fsync", "rename", "fsync_folder", "remove", "read", "view"),
    *("names", "make_folder"),
)
_STORE = (
    *("acquire", "lease", "members", "add_run", "run", "runs", "set_run", "contribute"),
    *("contributions", "commit_round", "rounds", "kept", "hold", "drop", "held", "holdings"),
    *("add_event", "events", "commit_round with answers"),
)
POINTS = (
    *(f"server store {when} {name}" for name in _STORE for when in ("before", "after")),
    *(f"server disk blobs {name}" for name in _DISK),
    *(f"node disk spool {name}" for name in _DISK if name != "append"),
    *("server network arrived", "server network reply"),
    *("node network send", "node network receive"),
)
"""All points at which a process can die; at each of them one does, sooner or later."""
_TEARING = ("server disk blobs torn", "node disk spool torn") * 10


@dataclass(frozen=True)
class Plan:
    """Something that is going to happen.

    Args:
        at: when, in seconds.
        kind: such as ``crash``.
        who: ``server`` or a site.
        value: seconds, or how many disk calls, store calls and messages later.
        point: at which of :data:`POINTS` a process dies; empty for any.
        power: whether the machine loses its power with the process.
    """

    at: float
    kind: str
    who: str = "server"
    value: float = 0.0
    power: bool = False
    point: str = ""


@dataclass
class Weather:
    """A seed's faults.

    Args:
        rates: probability by kind, per message or disk call.
        plans: what happens once, by time.
        calm: from this moment nothing more goes wrong.
        gentle: whether no fault keeps a site from answering in time, so that all of them count.
        liar: a malicious site; empty for none.
        jobs: names of the jobs, each with its moment.
        sites: number of sites.
        rounds, deadline, quorum: of the job.
        inline: bytes of the longest result that is sent as it is.
        near: whether small blobs lie in the store.
        breath: longest usual way of a message, in seconds.
    """

    rates: dict[str, float]
    plans: list[Plan]
    calm: float
    gentle: bool
    liar: str
    jobs: tuple[tuple[str, float], ...]
    sites: int
    rounds: int
    deadline: float
    quorum: float
    inline: int
    near: bool
    breath: float
    counts: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)


def weather_of(seed: int, random: Random, sites: tuple[str, ...]) -> Weather:
    """What a seed's source of randomness makes of it; seeds in a row take turns at :data:`POINTS`."""
    gentle = random.random() < 0.3
    count = random.randint(2, len(sites))
    names = sites[:count]
    calm = random.uniform(20, 60)
    weather = Weather(
        rates=_rates(random, gentle),
        plans=[],
        calm=calm,
        gentle=gentle,
        liar=random.choice(names) if not gentle and random.random() < 0.35 else "",
        jobs=_jobs(random),
        sites=count,
        rounds=random.randint(2, 4),
        deadline=600.0 if gentle else random.choice((20.0, 40.0)),
        quorum=float(random.randint(1, max(1, count - 1))),
        inline=random.choice((1 << 20, 1 << 20, 300)),
        near=random.random() < 0.5,
        breath=random.choice((0.02, 0.3, 1.0)),
    )
    plans = _plans(random, gentle, names, calm)
    if random.random() < 0.7:
        plans.append(_at_a_point(random, POINTS[seed % len(POINTS)], names, calm))
    weather.plans = sorted(plans, key=lambda plan: plan.at)
    return weather


def _jobs(random: Random) -> tuple[tuple[str, float], ...]:
    """One job, sometimes two, with the moments at which they are submitted."""
    names = random.sample(("scaffold", "fedavg", "cohort", "fedbuff", "fedasync"), 2)
    first = random.choice((names[0], "scaffold")), random.uniform(0.1, 1.0)
    second = names[1], random.uniform(0.1, 20.0)
    return (first, second) if first[0] != second[0] and random.random() < 0.2 else (first,)


def _at_a_point(random: Random, point: str, names: tuple[str, ...], calm: float) -> Plan:
    """A process dies at a certain point, soon after it has come there for the first time or later."""
    who = "server" if point.startswith("server") else random.choice(names)
    at = random.uniform(0.0, calm) if random.random() < 0.3 else 0.0
    later = float(random.choice((0, 0, 1, 2, 5)))
    return Plan(at, "crash", who, later, random.random() < 0.5, point)


def _rates(random: Random, gentle: bool) -> dict[str, float]:
    """A few kinds of trouble with the network and disks, each more or less often."""
    most = {
        "message dropped": 0.15,
        "message duplicated": 0.2,
        "message delayed": 0.15,
        "reply lost after its effect": 0.15,
        "transfer cut": 0.3,
        "slow disk": 0.01,
        "disk error": 0.005,
        "database error": 0.01,
        "worker process ended": 0.0 if gentle else 0.05,
        "site slow": 0.05,
    }
    return {
        kind: rate * random.random() if random.random() < 0.4 else 0.0
        for kind, rate in most.items()
    }


def _plans(random: Random, gentle: bool, names: tuple[str, ...], calm: float) -> list[Plan]:
    plans = []

    def some(most: int, chance: float) -> range:
        return range(random.randint(1, most) if random.random() < chance else 0)

    def moment() -> float:
        return random.uniform(0.5, calm)

    for _ in some(3, 0.4):
        who = "server" if random.random() < 0.6 else random.choice(names)
        later = float(random.randint(0, 60))
        plans.append(Plan(moment(), "crash", who, later, random.random() < 0.5))
    plans += [
        _at_a_point(random, random.choice((*POINTS, *_TEARING)), names, calm) for _ in some(2, 0.4)
    ]
    for _ in some(2, 0.4):
        kind = random.choice(("both", "to", "from"))
        plans.append(Plan(moment(), f"cut {kind}", random.choice(names), random.uniform(1, 30)))
    for _ in some(2, 0.25):
        jump = random.choice((-1, 1)) * random.choice((0.5, 30.0, 3600.0, 1e6))
        plans.append(Plan(moment(), "clock", "server", jump))
    plans += [Plan(moment(), "second server") for _ in some(1, 0.15)]
    plans += [Plan(moment(), "lost lock") for _ in some(1, 0.2)]
    plans += [
        Plan(moment(), "full", random.choice(("server", *names)), random.uniform(1, 20))
        for _ in some(1, 0.2)
    ]
    plans += [Plan(moment(), "stop", random.choice(names)) for _ in some(2, 0.2)]
    if not gentle:
        plans += [Plan(moment(), "cancel") for _ in some(1, 0.05)]
        plans += [
            Plan(moment(), "leave", random.choice(names), random.uniform(1, 40))
            for _ in some(1, 0.2)
        ]
    return plans
