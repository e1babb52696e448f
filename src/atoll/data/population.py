"""A population described, not listed: clients whose ids are computed and whose rows are made on demand.

Ten million simulated clients need no list of ten million ids and no rows of those nobody invites. A
:class:`LazyClients` is a federation like any other mapping from client id to data; what it holds is a
count, a seed, and a function that makes client number i. Any two processes make the same client alike,
because its random stream depends on the seed and its number only.

>>> def make(index, seed):
...     x = seed.generator().standard_normal((20, 3))
...     return Examples(x, (x.sum(1) > 0).astype(int))
>>> people = LazyClients(10_000_000, make, rows=20)
>>> len(people), people.ids[41], len(people["client-0000041"])
(10000000, 'client-0000041', 20)
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast, overload

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.core.ranges import inside
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.card import fingerprint

__all__ = [
    "MOST_LISTED",
    "ClientIds",
    "LazyClients",
    "ids_of",
    "known_rows",
    "resampled",
    "rows_of",
]

MOST_LISTED = 10_000
"""Larger populations are never listed whole: not in a manifest, not by an evaluation of everybody."""

_PREFIX = "client-"


@dataclass(frozen=True)
class ClientIds(Sequence[ClientId]):
    """``client-0000`` …, padded so that their text sorts like their number; computed, never stored.

    Args:
        total: how many.

    >>> ids = ClientIds(10_000_000)
    >>> ids[7], ids[-1], ids.index("client-0000041"), "client-41" in ids
    ('client-0000007', 'client-9999999', 41, False)
    """

    total: int

    def __len__(self) -> int:
        """How many."""
        return self.total

    @cached_property
    def _width(self) -> int:
        return max(4, len(str(self.total - 1)))

    @overload
    def __getitem__(self, index: int) -> ClientId: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClientId]: ...
    def __getitem__(self, index: int | slice) -> ClientId | Sequence[ClientId]:
        """The id of a number, or the ids of a slice as a tuple."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.total)))
        i = range(self.total)[index]
        return f"{_PREFIX}{i:0{self._width}d}"

    def __iter__(self) -> Iterator[ClientId]:
        """All ids in order, one at a time."""
        width = self._width
        return (f"{_PREFIX}{i:0{width}d}" for i in range(self.total))

    def __contains__(self, client: object) -> bool:
        """Whether ``client`` is spelt exactly like one of them."""
        return self._number(client) is not None

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The number of an id.

        Raises:
            ValueError: it is none of them.
        """
        i = self._number(value)
        whole = start == 0 and stop is None
        if i is None or not (whole or i in range(*slice(start, stop).indices(self.total))):
            raise ValueError(f"{value!r} is not a client")
        return i

    def _number(self, client: object) -> int | None:
        if not isinstance(client, str) or len(client) > len(_PREFIX) + 20:
            return None
        try:
            i = int(client[len(_PREFIX) :])
        except ValueError:
            return None
        # int() reads more spellings of a number than one.
        same = 0 <= i < self.total and client == f"{_PREFIX}{i:0{self._width}d}"
        return i if same else None


@dataclass(frozen=True, eq=False)
class LazyClients(Mapping[ClientId, Any]):
    """A federation that makes a client's data when they are asked for, and keeps nothing.

    Args:
        count: number of clients, at least 1.
        make: called as ``make(index, seed)`` with the client's number and its own random stream, or as
            ``make(index, seed, source)`` where there is a source; gives :class:`Examples` or what
            the job's trainer understands. Worker processes import it: define it in a module.
        seed: root of the clients' streams.
        rows: rows of every client, or a function from a client's number to its rows; None when they
            are not known before the data are made.
        source: data that ``make`` draws from; worker processes share one copy of it.

    Raises:
        JobError: ``count`` or ``rows`` is below 1, or ``seed`` is a plain number.
    """

    count: int
    make: Callable[..., Any]
    seed: Seed = field(default_factory=lambda: Seed(0))
    rows: int | Callable[[int], int] | None = None
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what no federation can be."""
        if not inside(self.count, "whole [1, inf)"):
            raise JobError(
                f"a population of {self.count!r:.60} clients", remedy="at least one is needed"
            )
        made = cast(Any, self.make), cast(Any, self.rows)
        if not callable(made[0]):
            raise JobError(
                f"{made[0]!r:.60} makes no clients", remedy="give a function of number and seed"
            )
        if not (made[1] is None or callable(made[1]) or inside(made[1], "whole [1, inf)")):
            raise JobError(
                f"{made[1]!r:.60} rows for every client", remedy="at least one is needed"
            )
        if not isinstance(cast(Any, self.seed), Seed):
            raise JobError(
                f"the population's seed is {self.seed!r:.60}",
                remedy="give atoll.core.seeds.Seed(1): it is the root of every client's stream",
            )

    @cached_property
    def ids(self) -> ClientIds:
        """All ids, computed on demand."""
        return ClientIds(self.count)

    def at(self, i: int) -> Any:
        """The data of client number i, made now.

        Raises:
            DataError: there are more or fewer rows than ``rows`` says.
        """
        stream = self.seed / i
        made = self.make(i, stream) if self.source is None else self.make(i, stream, self.source)
        told = self._told(i)
        if told is not None and told != len(made):
            raise DataError(
                f"{len(made)} rows were made, but {told} were announced",
                site=self.ids[i],
                remedy="let rows= of the population agree with its make function, or leave it out",
            )
        return made

    def __getitem__(self, client: ClientId) -> Any:
        """The data of one client, made now."""
        return self.at(self._number(client))

    def __iter__(self) -> Iterator[ClientId]:
        """Ids in order; no data are made."""
        return iter(self.ids)

    def __len__(self) -> int:
        """Number of clients."""
        return self.count

    def __contains__(self, client: object) -> bool:
        """Whether there is such a client; no data are made."""
        return client in self.ids

    def size_of(self, client: ClientId) -> int:
        """Its number of rows; its data are made only where ``rows`` does not tell."""
        told = self._told(self._number(client))
        return len(self[client]) if told is None else told

    def sample(self, count: int, seed: Seed) -> dict[ClientId, Any]:
        """The data of ``count`` clients drawn without replacement, such as those to evaluate on."""
        chosen = seed.generator().choice(self.count, count, replace=False, shuffle=False)
        return {self.ids[i]: self.at(i) for i in sorted(map(int, chosen))}

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the description: count, function's name, seed, source, three clients."""
        rows = self.rows if isinstance(self.rows, int) else None
        told = [self.count, _name(self.make), self.seed.digest().hex(), rows]
        sha = hashlib.sha256(b"atoll population 1" + json.dumps(told).encode())
        probes = [self._probe(i) for i in sorted({0, self.count // 2, self.count - 1})]
        for data in (*(self.source or {}).values(), *probes):
            sha.update((fingerprint(data) if isinstance(data, Examples) else "").encode() + b"\n")
        return sha.hexdigest()

    def _probe(self, i: int) -> Any:
        try:
            return self.at(i)
        except Exception:  # whatever a user's function raises is told when the client is invited
            return None

    def _number(self, client: ClientId) -> int:
        try:
            return self.ids.index(client)
        except ValueError:
            raise KeyError(client) from None

    def _told(self, i: int) -> int | None:
        return self.rows(i) if callable(self.rows) else self.rows


def _name(make: Any) -> str:
    while isinstance(make, functools.partial):
        make = make.func
    named = make if hasattr(make, "__qualname__") else type(make)
    return f"{named.__module__}.{named.__qualname__}"


def ids_of(clients: Mapping[ClientId, Any]) -> Sequence[ClientId]:
    """All ids in the federation's order; not a list of them where they can be computed."""
    ids = getattr(clients, "ids", None)
    return ids if isinstance(ids, Sequence) else tuple(clients)


def rows_of(clients: Mapping[ClientId, Any], client: ClientId) -> int:
    """Rows of one client; its data are not touched where their number is known without."""
    size_of: Callable[[ClientId], int] | None = getattr(clients, "size_of", None)
    return len(clients[client]) if size_of is None else size_of(client)


def known_rows(clients: Mapping[ClientId, Any], client: ClientId) -> int | None:
    """Rows of one client for planning ahead; None where one would have to make its data to know."""
    if isinstance(clients, LazyClients) and clients.rows is None:
        return None
    return rows_of(clients, client)


@dataclass(frozen=True, eq=False)
class _Resample:
    """Makes a client of :func:`resampled`; class c are the rows ``order[bounds[c]:bounds[c + 1]]``."""

    rows: int
    alpha: float | None
    order: Array
    bounds: Array

    def __call__(self, index: int, seed: Seed, source: Mapping[str, Examples]) -> Examples:
        rng, every = seed.generator(), source["rows"]
        if self.alpha is None:
            chosen = rng.integers(len(every), size=self.rows)
        else:
            sizes = np.diff(self.bounds)
            share = rng.dirichlet(np.full(len(sizes), self.alpha))
            counts = rng.multinomial(self.rows, share / share.sum())
            labels = np.repeat(np.arange(len(sizes)), counts)
            chosen = self.order[self.bounds[labels] + rng.integers(0, sizes[labels])]
        return Examples(every.features[chosen], every.targets[chosen])


def resampled(
    examples: Examples, clients: int, rows: int, seed: Seed, *, alpha: float | None = None
) -> LazyClients:
    """A population of any size from one dataset: each client draws its rows from it, with replacement.

    Unlike a partition, clients may hold the same rows, so their number is not bounded by the data.

    Args:
        examples: all rows; worker processes share one copy.
        clients: number of clients.
        rows: rows of each.
        seed: root of the draws.
        alpha: label skew: each client's shares of the classes are drawn from Dir(alpha); None: rows
            are drawn evenly.

    Raises:
        JobError: no rows, a share that is not positive, or label skew without classes.
    """
    if len(examples) < 1 or rows < 1:
        raise JobError(f"{rows} rows for each client out of {len(examples)}")
    order, bounds = np.zeros(0, np.int64), np.array([0, len(examples)])
    if alpha is not None:
        if not alpha > 0 or not np.isfinite(alpha):
            raise JobError(f"alpha = {alpha:g} must be a positive number")
        if examples.targets.dtype.kind not in "biu":
            raise JobError("label skew needs classes", remedy="leave alpha out for real targets")
        order = np.argsort(examples.targets, kind="stable")
        starts = np.flatnonzero(np.diff(examples.targets[order])) + 1
        bounds = np.concatenate([[0], starts, [len(examples)]])
    make = _Resample(rows, alpha, order, bounds.astype(np.int64))
    return LazyClients(clients, make, seed, rows, {"rows": examples})
