"""Row 14: malicious clients in front of the server's gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from atoll.aggregation.gate import Gate
from atoll.algorithms import FedAvg, Scaffold
from atoll.core.contracts import Algorithm, Examples
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed
from atoll.models.linear import LinearTrainer
from atoll.privacy.audit.hostile import MALFORMED, POISON
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts
from atoll.runtime.loop import Evaluation, Finished, Loop, Stop
from atoll.server.rounds.tampering import TamperedExecutor
from benchmarks.privacy.figures import Figure

BAD = "site3"


def parts_of(algorithm: Algorithm, dtype: str = "float32", max_norm: float = 0.0) -> Parts:
    """Five sites with a logistic task each."""
    draw = np.random.default_rng(0)
    slope = draw.normal(size=8)
    clients: dict[str, Any] = {}
    for i in range(1, 6):
        x = draw.normal(size=(20 + 5 * i, 8)).astype(dtype)
        clients[f"site{i}"] = Examples(x, (x @ slope > 0).astype(np.int64))
    trainer = LinearTrainer("logistic", 8, dtype=dtype)
    work = LocalWork(epochs=2, batch_size=8)
    return Parts(algorithm, trainer, clients, Seed(1), work, apart=True, gate=Gate(max_norm))


def played(parts: Parts, tamper: Mapping[str, Any], rounds: int = 4) -> tuple[Finished, list[Any]]:
    """A run with some clients tampered with; its end and its records."""
    records: list[Any] = []
    loop = Loop(
        parts,
        TamperedExecutor(parts, tamper),
        evaluation=Evaluation(0),
        stop=Stop(rounds),
        observers=(records.append,),
    )
    return loop.run(), records


def refusals(parts: Parts, attack: Callable[..., Any]) -> tuple[int, int, bool]:
    """Rounds, how often the attacker was refused, and whether the model is that of a run without it."""
    end, records = played(parts, {BAD: attack})
    alone, _ = played(parts, {BAD: None})
    refused = sum(r["missing"].get(BAD, "").startswith("refused") for r in records)
    same = model_hash(end.progress.state.parameters) == model_hash(alone.progress.state.parameters)
    return len(records), refused, same


def malformed(quick: bool = False) -> Sequence[Figure]:
    """Row 14, and what a limit on norms adds."""
    figures = []
    ways: list[tuple[str, Callable[[], Parts]]] = [
        ("FedAvg, float32", partial(parts_of, FedAvg())),
        ("FedAvg, float64", partial(parts_of, FedAvg(), "float64")),
        ("SCAFFOLD, float32", partial(parts_of, Scaffold())),
    ]
    for name, parts in ways:
        rounds = refused = same = 0
        for attack in MALFORMED.values():
            r, n, identical = refusals(parts(), attack)
            rounds, refused, same = rounds + r, refused + n, same + identical
        what = f"{len(MALFORMED)} malformed updates, {name}"
        found = f"{refused}/{rounds} refused; model as without the attacker, bit for bit: "
        found += f"{same}/{len(MALFORMED)}"
        holds = refused == rounds and same == len(MALFORMED)
        figures.append(Figure(14, what, "100 % refused, bit-identical", found, holds))
    limited = parts_of(FedAvg(), max_norm=1.0)
    for name in ("scaled", "scaled_flip"):
        r, n, same = refusals(limited, POISON[name])
        found = f"{n}/{r} refused; bit-identical: {same}"
        figures.append(
            Figure(
                14, f"update times 100 ({name}), max_norm = 1", "refused", found, n == r and same
            )
        )
    r, n, _ = refusals(limited, POISON["sign_flip"])
    figures.append(Figure(14, "sign flip, max_norm = 1", "", f"{n}/{r} refused: valid in form"))
    return figures
