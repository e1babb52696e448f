"""Who runs what: tables to extend, one line a row."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.given import LOCAL

__all__ = ["BASES", "NAMES", "OURS", "PEERS", "Contestant", "Ours", "Peer", "contestants"]

EVERYWHERE = ("W1", "W2", "W3", "W4")
HEAVY = ("W3",)
"""Workloads whose rounds take half a minute: they run with all workers only, as other methods do."""


@dataclass(frozen=True)
class Ours:
    """A row of Atoll.

    Args:
        name: shown; ``atoll`` is what a user gets without choosing, and what ratios refer to.
        options: fields of the trainer to set, such as ``path=compiled``.
        kind: ``torch``, or ``numpy`` for the trainer without torch.
        workloads, workers: where it runs.
        methods: which it runs; None for all.
        exact: whether its loss must be that of all others; low precision may end elsewhere.
    """

    name: str
    options: tuple[str, ...] = ()
    kind: str = "torch"
    workloads: tuple[str, ...] = EVERYWHERE
    workers: tuple[int, ...] = (1, 2)
    methods: tuple[str, ...] | None = None
    exact: bool = True


OURS = (
    Ours("atoll"),
    Ours("atoll-general", ("path=general",), workloads=("W1", "W2"), methods=("fedavg",)),
    Ours("atoll-compiled", ("path=compiled",)),
    Ours(
        "atoll-bf16",
        ("precision=bfloat16",),
        workloads=("W2", "W3"),
        methods=("fedavg",),
        exact=False,
    ),
    Ours("atoll-numpy", kind="numpy", workloads=("W4",), workers=(1,)),
)
"""Ours, a line a row: what a user gets, and what choices of the trainer give."""

BASES = (
    Ours("plain", methods=("fedavg",)),
    Ours("central", methods=("fedavg",)),
)
"""The plain loop, and the centralised one, which learns something else: its loss is not compared."""


@dataclass(frozen=True)
class Peer:
    """A row of a peer.

    Args:
        name: of the peer and of its runner in this package.
        mode: passed to the runner, shown after the name.
        workers: processes or threads, by workload.
        methods: which it ships.
        rounds: at most, by workload, where a round takes it long.
        launcher: put before the runner where it has several workers.
        single: methods it can only run with one worker.
    """

    name: str
    workers: Mapping[str, Sequence[int]]
    mode: str = ""
    methods: tuple[str, ...] = ("fedavg",)
    rounds: Mapping[str, int] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    single: tuple[str, ...] = ()


PEERS = (
    Peer(
        "flower",
        {"W1": (2,), "W2": (2,), "W3": (2,), "W4": (2,)},
        methods=("fedavg", "fedprox", "fedadam", *LOCAL),
        rounds={"W4": 40},
    ),
    Peer(
        "pfl",
        {"W1": (1, 2), "W2": (1, 2), "W3": (2,), "W4": (1,)},
        methods=("fedavg", "fedprox", "scaffold", "fedadam", *LOCAL),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "{workers}"),
        single=("scaffold",),
    ),
    Peer(
        "blazefl",
        {"W1": (2,), "W2": (2,), "W3": (2,), "W4": (2,)},
        mode="threads",
        methods=("fedavg", *LOCAL),
    ),
    Peer("blazefl", {"W1": (2,), "W2": (2,), "W4": (2,)}, mode="processes", rounds={"W4": 10}),
    Peer(
        "fedjax",
        {"W1": (1, 2), "W2": (1, 2), "W3": (2,), "W4": (1, 2)},
        methods=("fedavg", "fedprox", "fedadam", *LOCAL),
    ),
    Peer("nvflare", {"W3": (2,), "W4": (5,)}, rounds={"W4": 6}),
)
"""The peers. pfl deals clients to workers evenly, so W4 with its five has one; its SCAFFOLD keeps clients'
states in one process. NVFlare starts a process a client: W1 and W2 would need a thousand."""

NAMES: Mapping[str, str] = MappingProxyType(
    {"flower": "Flower", "pfl": "pfl-research", "blazefl": "BlazeFL", "fedjax": "FedJAX"}
    | {"nvflare": "NVFlare", "plain": "plain loop", "central": "centralised loop"}
)


@dataclass(frozen=True)
class Contestant:
    """One row of a workload's table.

    Args:
        name: for people.
        peer: of whom; ``atoll``, ``plain`` and ``central`` for ours.
        workers: processes or threads.
        rounds: to run.
        command: without the rounds; of a peer also without the file for its weights.
        exact: whether its loss is compared.
    """

    name: str
    peer: str
    workers: int
    rounds: int
    command: tuple[str, ...]
    exact: bool = True


def _own(row: Ours, workload: str, method: str, rounds: int) -> Iterator[Contestant]:
    if workload not in row.workloads or (row.methods is not None and method not in row.methods):
        return
    peer = row.name.partition("-")[0]
    kind = "atoll-numpy" if row.kind == "numpy" else peer
    options = [word for option in row.options for word in ("--option", option)]
    fewest = workload in HEAVY or method != "fedavg"
    for workers in row.workers[-1:] if fewest else row.workers:
        words = ["-m", "benchmarks.one", kind, workload, "--method", method]
        words += ["--workers", str(workers), *options]
        name = NAMES.get(row.name, row.name)
        yield Contestant(name, peer, workers, rounds, (sys.executable, *words), row.exact)


def _other(
    row: Peer, python: Path, workload: str, method: str, rounds: int
) -> Iterator[Contestant]:
    if method not in row.methods:
        return
    offered = [w for w in row.workers.get(workload, ()) if w == 1 or method not in row.single]
    for workers in offered if method == "fedavg" else offered[-1:]:
        several = row.launcher if workers > 1 else ()
        words = [word.format(workers=workers) for word in several]
        words += ["-m", f"benchmarks.peers.{row.name}", workload, "--method", method]
        words += ["--workers", str(workers), *(["--mode", row.mode] if row.mode else [])]
        name = f"{NAMES[row.name]}, {row.mode}" if row.mode else NAMES[row.name]
        most = min(rounds, row.rounds.get(workload, rounds))
        yield Contestant(name, row.name, workers, most, (str(python), *words))


def contestants(
    workload: str, method: str, rounds: int, pythons: Mapping[str, Path]
) -> list[Contestant]:
    """All that run a workload: bases, ours, and the peers whose interpreters are given."""
    own = [c for row in (*BASES, *OURS) for c in _own(row, workload, method, rounds)]
    others = [
        c
        for row in PEERS
        if row.name in pythons
        for c in _other(row, pythons[row.name], workload, method, rounds)
    ]
    return [*own, *others]
