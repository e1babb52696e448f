"""Lies about what an answer costs: work that is charged for less than leaves, or for nothing.

Part of :mod:`atoll.node.lies.told`. The job adds noise for single rows, without masks, so each answer that
leaves has to be in the site's ledger, with the noise that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.job.load import parse_job
from atoll.node.lies.cast import RUN, SITES
from atoll.node.lies.stage import Stage
from atoll.node.peers import Trust
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.steward import Asked, Steward
from atoll.wire.frames import encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

__all__ = ["ACCOUNT_LIES"]

_JOB: dict[str, Any] = {
    "name": "lies",
    "data": {"source": "sites/*.csv", "target": "y"},
    "model": {"kind": "logistic"},
    "privacy": {"aggregation": "plain", "record": {"noise_multiplier": 1.0}},
    "evaluation": {"federated": False},
}
_PLAN, _OTHER = (BlobRef(sha256=digit * 64, size=1) for digit in "01")


def _task(site: str, kind: str, number: int = 0, **changes: Any) -> TaskBody:
    honest = {
        "id": f"{RUN}.{kind}.{number}.{site}",
        "run": RUN,
        "kind": kind,
        "number": number,
        "client": site,
        "plan": _PLAN,
    }
    return TaskBody.model_validate({**honest, **changes})


def _asked(stage: Stage, name: str, body: TaskBody) -> None:
    """A site makes itself ready, gets a task, and its answer leaves; it is to be in the ledger then."""
    node, asked = stage.nodes[name], Asked(parse_job(_JOB), "lies", sites=len(SITES))
    ledger = Ledger(node.home.ledger, cast(Trust, node.trust).signer)
    steward, ready = Steward(node.home, stage.settings.policy, ledger), _task(name, "ready")
    try:
        steward.admit(ready, asked)
        steward.note(ready, ResultBody(task=ready.id, status="done", answer={"rows": 1000}))
        steward.admit(body, asked)
        done = ResultBody(task=body.id, status="done").model_dump()
        held = node.spool.finish(RUN, body.id, encode(done, {"delta": np.ones(1, np.float32)}))
        steward.leaving(held)
        stage.released.append(name)
    except AtollError as error:
        stage.refused[name] = error.message


def _unpaid_name(stage: Stage) -> None:
    """A round is asked for under the name of another, of which the ledger knows nothing."""
    for name in SITES:
        _asked(stage, name, _task(name, "train", id=f"{RUN}.train.7.{name}"))


def _other_rows(stage: Stage) -> None:
    """Sites made themselves ready by a plan with many rows, and train by one that leaves them a few."""
    for name in SITES:
        _asked(stage, name, _task(name, "train", plan=_OTHER))


ACCOUNT_LIES: Mapping[str, Callable[[Stage], None]] = {
    "unpaid name": _unpaid_name,
    "other rows": _other_rows,
}
"""What a server of runs that cost privacy may try."""
