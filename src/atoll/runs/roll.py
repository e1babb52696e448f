"""Whom the manifest names, and what identifies the data, at a price that fits the population.

Up to :data:`~atoll.data.population.MOST_LISTED` clients are all named. Of a larger population only those
that took part are, as many as that: a run over ten million clients leaves a folder like any other's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atoll.core.contracts import Examples
from atoll.core.errors import Fault
from atoll.core.values import ClientId
from atoll.data.card import fingerprint
from atoll.data.population import MOST_LISTED, LazyClients, ids_of, known_rows, rows_of
from atoll.data.table import Table

__all__ = ["clients_roll", "data_prints", "evaluation_faults", "population_entry", "told_rows"]

_MOST_PRINTS = 200
"""So many participants of a large population are fingerprinted one by one, as cards are."""

Clients = Mapping[ClientId, Any]
Records = Sequence[Mapping[str, Any]]


def data_prints(cards: Iterable[Mapping[str, Any]], clients: Clients) -> dict[str, str]:
    """What a checkpoint must agree with: fingerprints by site, or one over all under the empty name."""
    prints = {c["site"]: c["fingerprint"] for c in cards if c.get("fingerprint")}
    if prints:
        return prints
    if isinstance(clients, LazyClients):  # its description: nobody is made but a few
        return {"": clients.fingerprint()}
    sha = hashlib.sha256()
    for client, data in clients.items():
        sha.update(client.encode())
        known = isinstance(data, Examples | Table)
        sha.update(fingerprint(data).encode() if known else b"")
    return {"": sha.hexdigest()}


def told_rows(clients: Clients, client: ClientId) -> int | None:
    """Rows of a client; None where a site under masks has not told them."""
    return rows_of(clients, client) if getattr(clients[client], "told", True) else None


def clients_roll(clients: Clients, prints: Mapping[str, str], rounds: Records) -> dict[str, Any]:
    """The manifest's ``data``: rows and fingerprint by client.

    Args:
        clients: the federation.
        prints: fingerprints by client.
        rounds: the run's records: who was invited, and with how many rows they contributed.
    """
    lazy = isinstance(clients, LazyClients)
    if not lazy and len(clients) <= MOST_LISTED:
        return {
            c: {"rows": told_rows(clients, c), "fingerprint": prints.get(c, "")}
            for c in ids_of(clients)
        }
    rows = {c: n for record in rounds for c, n in record["contributed"].items()}
    named: Iterable[ClientId] = ids_of(clients)
    if len(clients) > MOST_LISTED:
        named = list(dict.fromkeys(c for record in rounds for c in record["invited"]))[:MOST_LISTED]

    def count(client: ClientId) -> int | None:
        known = known_rows(clients, client)
        return rows.get(client) if known is None else known

    found = {c: {"rows": count(c), "fingerprint": ""} for c in named}
    if lazy and len(rows) <= _MOST_PRINTS:
        for client in rows.keys() & found.keys():
            data = clients[client]
            found[client]["fingerprint"] = fingerprint(data) if isinstance(data, Examples) else ""
    return found


def population_entry(
    clients: Clients, prints: Mapping[str, str], rounds: Records
) -> dict[str, Any]:
    """The manifest's ``population``: how many clients there are, were invited, and contributed."""
    return {
        "clients": len(clients),
        "invited": len({c for record in rounds for c in record["invited"]}),
        "contributed": len({c for record in rounds for c in record["contributed"]}),
        "fingerprint": prints.get("", ""),
    }


def evaluation_faults(
    clients: Clients, held_out: Clients, federated: bool, compare: bool
) -> list[Fault]:
    """What would touch every client of a large lazy population."""
    found = []
    if federated and isinstance(held_out, LazyClients) and len(held_out) > MOST_LISTED:
        found.append(
            Fault(
                "evaluation.federated",
                f"would evaluate at all {len(held_out):,} clients, made one by one",
                "hand over a sample: held_out=tests.sample(500, seed); or set federated=False",
            )
        )
    if compare and isinstance(clients, LazyClients) and len(clients) > MOST_LISTED:
        found.append(
            Fault(
                "evaluation.compare",
                f"would pool the rows of all {len(clients):,} clients",
                "set compare=False",
            )
        )
    return found
