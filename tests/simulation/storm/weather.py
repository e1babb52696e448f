"""Which faults a seed brings, how often, and until when; and the count of what really happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

__all__ = ["KINDS", "Plan", "Weather", "weather_of"]

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
    "worker process ended",
    # Disks and clocks.
    "torn write",
    "slow disk",
    "disk error",
    "clock jumped",
    # Servers.
    "second server refused",
    "second server took over",
    # Sites.
    "site left",
    "site rejoined",
    "site equivocated",
    "site replayed",
    "site sent what is no update",
)
"""All kinds of faults; each must be reached."""


@dataclass(frozen=True)
class Plan:
    """Something that is going to happen.

    Args:
        at: when, in seconds.
        kind: such as ``crash``.
        who: ``server`` or a site.
        value: seconds, or how many disk calls, store calls and messages later.
        power: whether the machine loses its power with the process.
    """

    at: float
    kind: str
    who: str = "server"
    value: float = 0.0
    power: bool = False


@dataclass
class Weather:
    """A seed's faults.

    Args:
        rates: probability by kind, per message or disk call.
        plans: what happens once, by time.
        calm: from this moment nothing more goes wrong.
        gentle: whether no fault keeps a site from answering in time, so that all of them count.
        liar: a malicious site; empty for none.
        job: name of the algorithm.
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
    job: str
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


def weather_of(random: Random, sites: tuple[str, ...]) -> Weather:
    """What a seed's source of randomness makes of it."""
    gentle = random.random() < 0.3
    count = random.randint(2, len(sites))
    names = sites[:count]
    calm = random.uniform(20, 60)
    weather = Weather(
        rates=_rates(random, gentle),
        plans=[],
        calm=calm,
        gentle=gentle,
        liar=random.choice(names) if not gentle and random.random() < 0.25 else "",
        job=random.choice(("scaffold", "fedavg")),
        sites=count,
        rounds=random.randint(2, 4),
        deadline=600.0 if gentle else random.choice((20.0, 40.0)),
        quorum=float(random.randint(1, max(1, count - 1))),
        inline=random.choice((1 << 20, 1 << 20, 300)),
        near=random.random() < 0.5,
        breath=random.choice((0.02, 0.3, 1.0)),
    )
    weather.plans = sorted(_plans(random, gentle, names, calm), key=lambda plan: plan.at)
    return weather


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
        "worker process ended": 0.0 if gentle else 0.05,
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

    for _ in some(4, 0.7):
        who = "server" if random.random() < 0.6 else random.choice(names)
        later = float(random.randint(0, 40))
        plans.append(Plan(moment(), "crash", who, later, random.random() < 0.5))
    for _ in some(2, 0.4):
        kind = random.choice(("both", "to", "from"))
        plans.append(Plan(moment(), f"cut {kind}", random.choice(names), random.uniform(1, 50)))
    for _ in some(2, 0.25):
        jump = random.choice((-1, 1)) * random.choice((0.5, 30.0, 3600.0, 1e6))
        plans.append(Plan(moment(), "clock", "server", jump))
    plans += [Plan(moment(), "second server") for _ in some(1, 0.15)]
    plans += [Plan(moment(), "lost lock") for _ in some(1, 0.2)]
    if not gentle:
        plans += [
            Plan(moment(), "leave", random.choice(names), random.uniform(1, 40))
            for _ in some(1, 0.2)
        ]
    return plans
