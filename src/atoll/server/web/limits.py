"""How much the server takes from whom: sizes, times, rates. All hold before anybody is known.

What a stranger can cost is bounded by these figures alone, whatever it sends: so many connections,
so many bytes before a signature is checked, so many seconds for a line to be finished.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Buckets", "Limits", "origin"]

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Args:
        header: of a request's line and headers together.
        header_seconds: until they are complete, from the first byte or from the handshake.
        handshake_seconds: for TLS.
        idle_seconds: that a connection of a member is kept open between two requests.
        knocking: connections that have not sent a byte yet; beyond it the oldest is closed.
        strangers: connections on which nobody has proved who it is; beyond it the oldest is closed.
        connections: of one member.
        requests: of one member at a time.
        body: that is always taken into memory.
        room: for longer ones, all together; where it is full, they wait in files.
        body_seconds: for a body of no length; a longer one has ``1 / slowest`` more for each byte.
        slowest: bytes a second below which a sender is given up.
        drain: most bytes of a body that a stranger may send although it is refused.
        stall_seconds: that a reader may take for one piece of an answer.
        lanes: threads for long bodies.
        lanes_each: of them, for one member.
        skew: that clocks may differ.
        wait: longest time a question may wait for news.
        roster_seconds: after which a revocation by another process is seen at the latest.
        joins: attempts an address may make at once.
        joins_per_second: that come back.
        strange: refused requests an address may make at once.
        strange_per_second: that come back.
    """

    header: int = 16 * KIB
    header_seconds: float = 10.0
    handshake_seconds: float = 5.0
    idle_seconds: float = 75.0
    knocking: int = 256
    strangers: int = 96
    connections: int = 32
    requests: int = 32
    body: int = 256 * KIB
    room: int = 32 * MIB
    body_seconds: float = 20.0
    slowest: float = 16 * KIB
    drain: int = 64 * KIB
    stall_seconds: float = 60.0
    lanes: int = 16
    lanes_each: int = 4
    skew: float = 300.0
    wait: float = 30.0
    roster_seconds: float = 1.0
    joins: int = 10
    joins_per_second: float = 0.2
    strange: int = 50
    strange_per_second: float = 5.0

    def seconds_for(self, size: int) -> float:
        """Time that a body of ``size`` bytes may take to arrive."""
        return self.body_seconds + size / self.slowest


def origin(address: str) -> str:
    """What counts as one place: an IPv4 address, or the /64 network of an IPv6 one.

    >>> origin("192.0.2.7"), origin("2001:db8::1:2")
    ('192.0.2.7', '2001:db8::')
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False).network_address)
    return str(parsed)


class Buckets:
    """Token buckets by key: ``burst`` at once, ``rate`` a second afterwards.

    At most ``most`` keys are remembered; the one unused for longest is forgotten first.

    >>> buckets = Buckets(rate=0.5, burst=1)
    >>> buckets.take("here", now=0.0), buckets.take("here", now=1.0), buckets.take("there", now=1.0)
    (0.0, 1.0, 0.0)
    """

    def __init__(self, rate: float, burst: int, most: int = 4096) -> None:
        self._rate, self._burst, self._most = rate, float(burst), most
        self._found: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Take a token: 0 when there was one, else the seconds until there is."""
        left, then = self._found.pop(key, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - then) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._found[key] = (left - 1 if left >= 1 else left, now)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
        return wait
