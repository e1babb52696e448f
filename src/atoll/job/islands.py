"""A federation ready to train on, and its data cards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, raise_faults, suggest
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.data.card import examples_card
from atoll.data.inputs import Inputs
from atoll.data.population import LazyClients

__all__ = [
    "MOST_CARDS",
    "Islands",
    "card",
    "first_of",
    "islands_of",
    "sized",
    "together",
    "untold",
]

MOST_CARDS = 200
"""Data cards are made for at most so many clients; a simulation of thousands needs none."""


@dataclass(frozen=True, eq=False)
class Islands:
    """A federation ready to train on.

    Args:
        train: training rows by client.
        held_out: test rows by client.
        central: test rows of the coordinator; None for none.
        features: values per row.
        classes: number of classes; 1 for a regression.
        labels: their names, where they have any.
        cards: one data card per site.
        notes: what is allowed but worth knowing.
        black: value of a black pixel after scaling, for image augmentation.
        agreed: what a job of statistics needs to know of the columns.
        inputs: what a model of these tables has to be given; None where sites differ in it, or there is none.
    """

    train: Mapping[ClientId, Any]
    held_out: Mapping[ClientId, Any] = field(default_factory=dict)
    central: Any = None
    features: int = 0
    classes: int = 0
    labels: Sequence[str] = ()
    cards: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    black: float = 0.0
    agreed: Any = None
    inputs: Inputs | None = None


def islands_of(
    clients: Mapping[ClientId, Any], held_out: Mapping[ClientId, Any], central: Any
) -> Islands:
    """A federation handed over in Python.

    Examples of lists, frames or tensors become NumPy arrays; those of arrays stay the objects that they are.

    Raises:
        DataError: no mapping, rows and targets of different lengths, or held-out rows of an unknown client.
    """
    for what, given in (("clients", clients), ("held_out", held_out)):
        if not isinstance(given, Mapping):
            raise DataError(
                f"{what} is a {type(given).__name__}, not rows by name",
                remedy="give a mapping, such as {'north': atoll.Examples(features, targets)}",
            )
    raise_faults(DataError, "the clients' names", first_of([*_nameless(clients, held_out)]))
    clients, held_out, central = _plain(clients), _plain(held_out), _arrays("central", central)
    lazy = isinstance(clients, LazyClients)  # nobody is made before they are invited
    lengths = [
        Fault(f"client {client!r}", f"{len(e.features)} rows but {len(e.targets)} targets")
        for client, e in (() if lazy else clients.items())
        if isinstance(e, Examples) and len(e.features) != len(e.targets)
    ]
    words = [
        Fault(f"client {client!r}", f"targets of dtype {e.targets.dtype} are no numbers", _NUMBERS)
        for client, e in (() if lazy else clients.items())
        if isinstance(e, Examples) and e.targets.dtype.kind not in "biuf"
    ]
    nothing = [
        Fault(f"{what} {client!r}", f"a {type(rows).__name__} holds no rows", "give atoll.Examples")
        for what, given in (("client", clients), ("held-out rows of", held_out))
        for client, rows in (() if isinstance(given, LazyClients) else given.items())
        if not isinstance(rows, Sized)
    ]
    faults = [*map(first_of, (nothing, lengths, words, _strangers(clients, held_out)))]
    raise_faults(DataError, "the clients' data", list(itertools.chain(*faults)))
    cards: list[Mapping[str, Any]] = []
    if len(clients) <= MOST_CARDS and not lazy:
        cards = [card(c, examples_card(e)) for c, e in clients.items() if isinstance(e, Examples)]
    return Islands(clients, held_out, central, cards=cards)


def first_of(faults: list[Fault]) -> list[Fault]:
    """The first faults of one kind, and in a line how many more there are.

    >>> several = [Fault(f"client {i}", "no rows") for i in range(1000)]
    >>> len(first_of(several)), first_of(several)[-1].message
    (6, 'and 995 more of this kind')
    """
    more = len(faults) - _SHOWN
    if more <= 0:
        return faults
    return [*faults[:_SHOWN], Fault("", f"and {more:,} more of this kind", count=more)]


def sized(islands: Islands) -> Islands:
    """Rows that were handed over, with their sizes: what a job's model is built by.

    Values per row are those of the first client; classes are counted over all rows there are, and 1 where
    targets are no whole numbers (of whatever type, as labels of a frame with gaps are floats).
    """
    rows = [e for e in islands.train.values() if isinstance(e, Examples)]
    if islands.features or not rows:
        return islands
    judged = [e for e in (*islands.held_out.values(), islands.central) if isinstance(e, Examples)]
    labels = [np.asarray(e.targets) for e in (*rows, *judged) if len(e)]
    whole = all(map(_whole, labels))
    classes = 1 + max((int(found.max()) for found in labels), default=0) if whole else 1
    features = math.prod(rows[0].features.shape[1:])
    return replace(islands, features=features, classes=classes)


def _whole(targets: Array) -> bool:
    return targets.dtype.kind in "biu" or bool(
        np.isfinite(targets).all() and (targets == np.floor(targets)).all()
    )


_SHOWN = 5
"""So many clients are named that have the same fault: there may be a thousand."""

_NUMBERS = "number the classes from 0: 0, 1, …"


def _nameless(*given: Mapping[Any, Any]) -> Iterator[Fault]:
    """Clients whose names are no texts: each file and stream would write them in a way of its own."""
    for clients in given:
        for client in () if isinstance(clients, LazyClients) else clients:
            if not isinstance(client, str):
                remedy = "name it by a text, such as 'client-1'"
                yield Fault(f"client {client!r:.60}", f"is a {type(client).__name__}", remedy)


def _plain(clients: Mapping[ClientId, Any]) -> Mapping[ClientId, Any]:
    """The federation with arrays as rows; the very mapping where they are arrays already."""
    if isinstance(clients, LazyClients):
        return clients
    changed = {
        c: made
        for c, rows in clients.items()
        if (made := _arrays(f"client {c!r}", rows)) is not rows
    }
    return {**clients, **changed} if changed else clients


def _arrays(whose: str, rows: Any) -> Any:
    """Examples as NumPy arrays; anything else as it is."""
    if not isinstance(rows, Examples):
        return rows
    for name in ("features", "targets"):
        if np.ma.is_masked(getattr(rows, name)):  # as an array it would be what lies below its mask
            remedy = f"fill them, such as {name}.filled(0.0), or leave these rows out"
            raise DataError(f"{whose}: {name} hold masked values", remedy=remedy)
    try:
        features, targets = np.asarray(rows.features), np.asarray(rows.targets)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{whose}: rows are no array: {error}") from error
    same = features is rows.features and targets is rows.targets
    return rows if same else Examples(features, targets)


def _strangers(clients: Mapping[ClientId, Any], held_out: Mapping[ClientId, Any]) -> list[Fault]:
    """Held-out rows of nobody; two lazy populations have the same ids but for their number."""
    known = list(itertools.islice(clients, 1000))  # enough to find a slip of the pen
    if isinstance(held_out, LazyClients) and isinstance(clients, LazyClients):
        if len(held_out) == len(clients):
            return []
        sizes = f"{len(held_out):,} clients, but there are {len(clients):,}"
        return [Fault("held_out", sizes, "give both populations the same count")]
    return [
        Fault("held_out", f"{client!r} is not a client", suggest(client, known))
        for client in held_out
        if client not in clients
    ]


def card(site: ClientId, found: Mapping[str, Any]) -> dict[str, Any]:
    """A data card as the report shows it: with its site, missing counts and label balance."""
    columns = found.get("columns", {})
    missing = {name: c["missing"] for name, c in columns.items() if c.get("missing")}
    return {"site": site, **found, "missing": missing, "labels": found.get("classes")}


def untold(site: ClientId, minimum: int) -> str:
    """The note on a site that gives no figures, because a rule on counts forbids it."""
    return (
        f"site {site!r}: figures of its held-out rows are not told, "
        f"fewer than {minimum} persons are behind them"
    )


def together(sites: Mapping[ClientId, Examples]) -> Examples:
    """The rows of all sites as one."""
    return Examples(
        np.concatenate([e.features for e in sites.values()]),
        np.concatenate([e.targets for e in sites.values()]),
    )
