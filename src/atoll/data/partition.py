"""One dataset dealt out to many clients, as benchmarks do it.

A scheme maps labels to the rows of each client; every row is given to exactly one client. A
:class:`Partition` holds the dataset once, re-ordered so that a client's rows are one slice, and hands
out views: 10,000 clients cost no more memory than one.

============  ================================================================  =====================
scheme        what differs between clients                                      published in
============  ================================================================  =====================
iid           nothing but chance
dirichlet     label shares, Dir(alpha) over clients for each class              Yurochkin et al. 2019
  balanced    the same; full clients get no more, redraw until min_rows         Li et al. 2022
classes       each client holds k classes only                                  McMahan et al. 2017
quantity      number of rows, Dir(alpha)                                        Li et al. 2022
============  ================================================================  =====================

Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv:2102.02079.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import JobError
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.population import ClientIds

__all__ = [
    "SCHEMES",
    "Partition",
    "add_noise",
    "classes_per_client",
    "client_ids",
    "deal",
    "dirichlet",
    "iid",
    "quantity",
    "rotate",
    "split",
    "split_clients",
]

Rows = tuple[Array, ...]
"""For each client the positions of its rows, int64."""

_TRIES = 10_000
"""Redraws of a random partition before it is called impossible."""
_KEPT = 4096
"""Clients whose views are kept: some 2 MB."""


def client_ids(count: int) -> ClientIds:
    """``client-0000`` …, padded so that their text sorts like their number."""
    return ClientIds(count)


@dataclass(frozen=True, eq=False)
class Partition(Mapping[ClientId, Examples]):
    """A dataset cut into consecutive slices, one per client, made on demand as views.

    Args:
        examples: all rows, ordered by client.
        bounds: ``(clients + 1,)`` int64; client i holds rows ``bounds[i]`` to ``bounds[i + 1]``.
    """

    examples: Examples
    bounds: Array

    def __getitem__(self, client: ClientId) -> Examples:
        """The rows of one client, a view; in a small federation the same one every time."""
        if (kept := self._kept.get(client)) is not None:
            return kept
        made = self.at(self._number(client))
        if len(self._kept) < _KEPT:
            self._kept[client] = made
        return made

    @cached_property
    def _kept(self) -> dict[ClientId, Examples]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Views of rows would travel as copies of them."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def at(self, i: int) -> Examples:
        """The rows of client number i, a view."""
        own = slice(int(self.bounds[i]), int(self.bounds[i + 1]))
        return Examples(self.examples.features[own], self.examples.targets[own])

    def __iter__(self) -> Iterator[ClientId]:
        """Ids in order."""
        return iter(self.ids)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.bounds) - 1

    def __contains__(self, client: object) -> bool:
        """Whether there is such a client."""
        return client in self.ids

    @cached_property
    def ids(self) -> ClientIds:
        """All ids, computed on demand."""
        return ClientIds(len(self))

    def size_of(self, client: ClientId) -> int:
        """Rows of one client."""
        if (kept := self._kept.get(client)) is not None:
            return len(kept.targets)
        i = self._number(client)
        return int(self.bounds[i + 1] - self.bounds[i])

    def _number(self, client: ClientId) -> int:
        try:
            return self.ids.index(client)
        except ValueError:
            raise KeyError(client) from None

    @property
    def sizes(self) -> Array:
        """Rows per client, ``(clients,)``."""
        return np.diff(self.bounds)


def deal(examples: Examples, rows: Sequence[Array]) -> Partition:
    """Give each client its rows: one re-ordered copy of the dataset."""
    bounds = np.concatenate([[0], np.cumsum([len(r) for r in rows], dtype=np.int64)])
    order = np.concatenate([np.asarray(r, np.int64) for r in rows])
    return Partition(Examples(examples.features[order], examples.targets[order]), bounds)


def iid(labels: Array, clients: int, seed: Seed) -> Rows:
    """Shuffle and cut into parts whose sizes differ by at most one.

    Args:
        labels: ``(n,)``; only their number matters.
        clients: number of clients.
        seed: the draw.
    """
    _enough(len(labels), clients, 1)
    return tuple(np.array_split(seed.generator().permutation(len(labels)), clients))


def dirichlet(
    labels: Array,
    clients: int,
    seed: Seed,
    *,
    alpha: float = 0.5,
    balanced: bool = True,
    min_rows: int = 10,
) -> Rows:
    """Label skew: the rows of each class go to clients in proportions drawn from Dir(alpha).

    Args:
        labels: class indices, ``(n,)``.
        clients: number of clients, N.
        seed: the draw.
        alpha: concentration; small is skewed, large is IID.
        balanced: NIID-Bench's rule: a client that already holds n / N rows gets none of the next
            class. Without it proportions are used as drawn.
        min_rows: the whole draw is repeated until every client has that many.

    Raises:
        JobError: 10,000 draws did not give every client ``min_rows``.
    """
    _positive("alpha", alpha)
    _enough(len(labels), clients, min_rows)
    generator = seed.generator()
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    least = -1
    for _ in range(_TRIES):
        cuts, sizes = _draw(members, clients, alpha, len(labels) if balanced else 0, generator)
        least = max(least, int(sizes.min()))
        if sizes.min() >= min_rows:
            break
    else:
        raise JobError(
            f"dirichlet(alpha={alpha:g}) over {clients} clients: in {_TRIES} draws the smallest "
            f"client had at most {least} rows, not {min_rows}",
            remedy="lower min_rows or clients, or raise alpha",
        )
    parts = [
        np.split(generator.permutation(rows), cut) for rows, cut in zip(members, cuts, strict=True)
    ]
    return tuple(np.concatenate([part[i] for part in parts]) for i in range(clients))


def _draw(
    members: Sequence[Array], clients: int, alpha: float, total: int, generator: np.random.Generator
) -> tuple[list[Array], Array]:
    """Where each class is cut, and the clients' sizes; ``total`` 0 leaves out the balancing rule."""
    sizes = np.zeros(clients, np.int64)
    cuts = []
    for rows in members:
        share = generator.dirichlet(np.full(clients, alpha))
        if total:
            open_ = sizes < total / clients
            share = share * open_
            # With a tiny alpha everything may have gone to full clients: then one open one takes all.
            if not share.sum() > 0:
                share[generator.choice(np.flatnonzero(open_))] = 1.0
        cut = (np.cumsum(share / share.sum()) * len(rows)).astype(np.int64)[:-1]
        sizes += np.diff(np.concatenate([[0], cut, [len(rows)]]))
        cuts.append(cut)
    return cuts, sizes


def classes_per_client(labels: Array, clients: int, seed: Seed, *, k: int = 2) -> Rows:
    """Label skew: each client holds exactly ``k`` classes; holders of a class share it evenly.

    Clients choose in random order among the classes with the fewest holders so far, so every class
    is held by nearly the same number of clients.

    Raises:
        JobError: more than the classes there are, too few clients to hold them all, or a class with
            fewer rows than holders.
    """
    classes = np.unique(labels)
    if not 1 <= k <= len(classes):
        raise JobError(f"k = {k} classes per client, but the data have {len(classes)}")
    if clients * k < len(classes):
        raise JobError(
            f"{clients} clients with {k} classes each cannot hold {len(classes)} classes",
            remedy="raise k or clients: every row must be given to someone",
        )
    generator = seed.generator()
    holders: list[list[int]] = [[] for _ in classes]
    for client in generator.permutation(clients):
        ties = generator.random(len(classes))
        for c in np.lexsort((ties, np.array([len(h) for h in holders])))[:k]:
            holders[c].append(int(client))
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for c, own in zip(classes, holders, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == c))
        if len(rows) < len(own):
            raise JobError(
                f"class {c} has {len(rows)} rows for {len(own)} clients",
                remedy="lower clients or k",
            )
        for client, part in zip(own, np.array_split(rows, len(own)), strict=True):
            parts[client].append(part)
    return tuple(np.concatenate(part) for part in parts)


def quantity(
    labels: Array, clients: int, seed: Seed, *, alpha: float = 0.5, min_rows: int = 1
) -> Rows:
    """Quantity skew: sizes follow Dir(alpha), rows are IID.

    Every client first gets ``min_rows``; the Dirichlet proportions divide the rest.
    """
    _positive("alpha", alpha)
    _enough(len(labels), clients, min_rows)
    generator = seed.generator()
    rest = len(labels) - clients * min_rows
    cut = (np.cumsum(generator.dirichlet(np.full(clients, alpha))) * rest).astype(np.int64)
    cut[-1] = rest
    bounds = cut + min_rows * np.arange(1, clients + 1)
    return tuple(np.split(generator.permutation(len(labels)), bounds[:-1]))


SCHEMES: Mapping[str, Callable[..., Rows]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "classes": classes_per_client,
    "quantity": quantity,
}
"""Name in a job file -> scheme, called as ``scheme(labels, clients, seed, **options)``."""


def add_noise(partition: Partition, sd: float, seed: Seed) -> Partition:
    """Feature skew: client i of n (from 1) gets Gaussian noise of standard deviation ``sd * i / n``."""
    features = partition.examples.features.copy()
    for i in range(len(partition)):
        own = slice(int(partition.bounds[i]), int(partition.bounds[i + 1]))
        noise = (seed / i).generator().standard_normal(features[own].shape, dtype=np.float32)
        features[own] += (sd * (i + 1) / len(partition)) * noise
    return Partition(Examples(features, partition.examples.targets), partition.bounds)


def rotate(partition: Partition, turns: Sequence[int] = (0, 1, 2, 3)) -> Partition:
    """Feature skew: client i sees its images turned by ``90 * turns[i mod len(turns)]`` degrees.

    Args:
        partition: features ``(n, ..., height, width)``.
        turns: quarter turns counter-clockwise.

    Raises:
        JobError: rows that are no images, or quarter turns of images that are not square.
    """
    shape = partition.examples.features.shape
    if len(shape) < 3 or (shape[-1] != shape[-2] and any(t % 2 for t in turns)):
        raise JobError(f"rotation needs square images, not features of shape {shape}")
    features = partition.examples.features.copy()
    for i in range(len(partition)):
        own = slice(int(partition.bounds[i]), int(partition.bounds[i + 1]))
        features[own] = np.rot90(features[own].copy(), turns[i % len(turns)], axes=(-2, -1))
    return Partition(Examples(features, partition.examples.targets), partition.bounds)


def split(
    examples: Examples, fraction: float, seed: Seed, *, stratify: bool = False
) -> tuple[Examples, Examples]:
    """Training and test rows; ``fraction`` of the rows, rounded, are for the test.

    Args:
        examples: ``n`` rows; at least one stays for training.
        fraction: share of test rows in [0, 1).
        seed: the draw.
        stratify: take the share from each class.

    Raises:
        JobError: another fraction, or targets that are no classes, of which no share can be taken.
    """
    train, test = _split_rows(examples.targets, fraction, seed, stratify)
    return (
        Examples(examples.features[train], examples.targets[train]),
        Examples(examples.features[test], examples.targets[test]),
    )


def split_clients(
    partition: Partition, fraction: float, seed: Seed, *, stratify: bool = False
) -> tuple[Partition, Partition]:
    """:func:`split` at every client, each with its own stream; two partitions of the same clients."""
    pairs = []
    for i, client in enumerate(partition):
        pair = _split_rows(partition.at(i).targets, fraction, seed / client, stratify)
        pairs.append([rows + int(partition.bounds[i]) for rows in pair])
    train, test = zip(*pairs, strict=True)
    return deal(partition.examples, train), deal(partition.examples, test)


def _split_rows(targets: Array, fraction: float, seed: Seed, stratify: bool) -> tuple[Array, Array]:
    if not 0 <= fraction < 1:
        raise JobError(f"test fraction {fraction:g} is not in [0, 1)")
    n = len(targets)
    take = min(int(n * fraction + 0.5), max(n - 1, 0))
    order = seed.generator().permutation(n)
    if stratify:
        real = targets.dtype.kind == "f" and bool((targets != np.floor(targets)).any())
        if targets.ndim != 1 or real:
            raise JobError(
                "stratify holds out a share of each class, and these rows have no class each",
                remedy="leave stratify out",
            )
        order = _spread(targets, order)
    return np.sort(order[take:]), np.sort(order[:take])


def _spread(targets: Array, order: Array) -> Array:
    """Re-order so that every beginning holds each class in nearly its share of the whole."""
    rank = np.empty(len(order))
    for c in np.unique(targets):
        own = np.flatnonzero(targets[order] == c)
        rank[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.asarray(order[np.argsort(rank, kind="stable")])


def _enough(rows: int, clients: int, min_rows: int) -> None:
    if clients < 1:
        raise JobError(f"{clients} clients", remedy="at least one is needed")
    if min_rows < 0 or rows < clients * min_rows:
        raise JobError(
            f"{rows} rows cannot give {clients} clients {min_rows} each",
            remedy="lower clients or min_rows",
        )


def _positive(name: str, value: float) -> None:
    if not value > 0 or not np.isfinite(value):
        raise JobError(f"{name} = {value:g} must be a positive number")
