"""What all runs at one site share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.node.cache import Cache
from atoll.node.home import Home
from atoll.node.link import Link
from atoll.node.peers import Trust
from atoll.node.settings import Settings
from atoll.node.spool import Spool

__all__ = ["Site"]


@dataclass(frozen=True, eq=False)
class Site:
    """What all runs at this site share.

    Args:
        home: the node's folder.
        name: of the site, which is the client's.
        settings: limits of this site.
        link: to the server.
        spool: what must not be lost.
        cache: what was downloaded.
        jitter: numbers in [0, 1) that spread the tries of many nodes.
        trust: what masked rounds need; None where the node takes part in none.
    """

    home: Home
    name: str
    settings: Settings
    link: Link
    spool: Spool
    cache: Cache
    jitter: Callable[[], float]
    trust: Trust | None = None
    pins: dict[str, frozenset[str]] = field(default_factory=dict)
    """Digests that each run needs now."""
