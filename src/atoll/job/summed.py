"""What the sites of a masked run add up under masks: updates, and what they would else tell one by one.

============  ==================================================  ===========================
subject       a site's input                                      once for
============  ==================================================  ===========================
``train``     its update, as the links of its chain made it       a round
``sums``      sums of the columns of its training rows            the run, before it begins
``evaluate``  figures of its held-out rows                        a model that is evaluated
============  ==================================================  ===========================

Server and node ask this module the same questions, so that each can hold the other to the answers. A sum of
one subject and one of another can not be subtracted, so each has names of its own: for the job, under which
a site releases its shares once a round, and for the model, over which sums of near cohorts are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from atoll.core.errors import UpdateRefused, WireError
from atoll.core.layout import Array
from atoll.data.limbs import COUNT, encode
from atoll.data.preprocessing import column_lengths
from atoll.data.schema import Schema
from atoll.job.schema import JobSpec
from atoll.job.sites import plan_of
from atoll.privacy.secagg.terms import Lane
from atoll.runtime.figures import COUNTS, DIGITS, spread
from atoll.wire.messages import TaskBody

__all__ = [
    "SUBJECTS",
    "Subject",
    "check_columns",
    "column_integers",
    "column_lanes",
    "column_shapes",
    "column_totals",
    "job_name",
    "kinds_from_plain",
    "lanes_told",
    "model_mark",
    "sums_digest",
    "work_mark",
]

Subject = Literal["train", "sums", "evaluate"]
SUBJECTS: tuple[Subject, ...] = ("train", "sums", "evaluate")

_KINDS = ("mean", "count", "confusion", "regression", "binned_auc")
_MOST_METRICS = 256
_MOST_SIZE = {"confusion": 512, "binned_auc": 65_536}


def job_name(job: str, run: str, about: str) -> str:
    """Under which name rounds of this run are known to masks.

    >>> job_name("c0ffee", "heart-1", "train"), job_name("c0ffee", "heart-1", "sums")
    ('c0ffee/heart-1', 'c0ffee/heart-1/sums')
    """
    return f"{job}/{run}" if about == "train" else f"{job}/{run}/{about}"


def model_mark(about: str, model: str) -> str:
    """Under which name sums that start from ``model`` (a digest) are compared with one another."""
    return model if about == "train" else hashlib.sha256(f"{about} {model}".encode()).hexdigest()


def work_mark(task: TaskBody, *, buffered: bool = False) -> str:
    """What a task says beside its model that decides what comes of it, as one text for all sites of a sum.

    Sites that were told different things here could be told apart in their sum, as surely as by another model:
    by a factor, a share of the work, a learning rate that falls with the version, other sums of columns in the
    plan, other code.

    Args:
        task: of one site.
        buffered: whether sites start from versions of their own, each with a factor of its own, as in a buffer.
    """
    own = () if buffered else (task.version, task.scale, task.repeat)
    code = sorted((name, ref.sha256) for name, ref in task.code.items())
    text = json.dumps([task.plan.sha256, code, task.fraction, *own], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sums_digest(spec: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What stands for a model where columns are added up: which columns they are, not in which run.

    Args:
        spec: the job, in plain form.
        schema: of the sites' tables, likewise.
    """
    told = [schema, spec.get("preprocessing"), (spec.get("data") or {}).get("source")]
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def column_shapes(spec: JobSpec, schema: Schema) -> dict[str, tuple[int, ...]]:
    """The shapes of :func:`~atoll.data.preprocessing.column_sums` of any site."""
    return {name: (size,) for name, size in column_lengths(plan_of(spec), schema).items()}


def check_columns(sums: Mapping[str, Array]) -> None:
    """Refuse sums of columns that no rows have; so that who sent them is named, and not who reads them.

    Args:
        sums: one site's or all sites', of the right shapes.

    Raises:
        UpdateRefused: counts that are none, or digits.
    """
    rows = float(sums["rows"][0])
    for name in ("rows", "present", "levels"):
        counts = np.asarray(sums[name])
        if not np.all((counts >= 0) & (counts <= rows) & (counts == np.floor(counts))):
            raise UpdateRefused(f"the counts {name!r} are not those of {rows:g} rows")
    limbs = np.asarray(sums["limbs"])
    if not np.all((abs(limbs) < 2.0**53) & (limbs == np.floor(limbs))):
        raise UpdateRefused("the columns' sums are no digits")


def column_lanes(spec: JobSpec, schema: Schema) -> tuple[Lane, ...]:
    """The lanes of the masked sum of :func:`~atoll.data.preprocessing.column_sums`."""
    lengths = column_lengths(plan_of(spec), schema)
    return tuple(
        Lane(name, length, DIGITS if name == "limbs" else COUNTS, 64, 1.0, "refuse")
        for name, length in lengths.items()
        if length
    )


def lanes_told(lanes: Iterable[Lane]) -> list[list[Any]]:
    """Lanes of whole numbers as a worker tells those of what it made, JSON-able.

    >>> lanes_told([Lane("delta", 40, 1000.0, 32, 1.0, "refuse")])
    [['delta', 40, 1000.0, 32]]
    """
    return [[lane.name, lane.length, float(lane.bound), lane.bits] for lane in lanes]


def column_integers(sums: Mapping[str, Array]) -> dict[str, Array]:
    """One site's sums as it sends them: whole numbers, and digits whose sum tells no more than the total."""
    found = {name: np.rint(v).astype(np.int64) for name, v in sums.items() if v.size}
    if "limbs" in found:
        found["limbs"] = spread(found["limbs"].reshape(-1, COUNT)).reshape(-1)
    return found


def column_totals(spec: JobSpec, schema: Schema, sums: Mapping[str, Array]) -> dict[str, Array]:
    """The sums over all sites, in the form in which exact sums in clear come: float64."""
    lengths = column_lengths(plan_of(spec), schema)
    found = {n: np.asarray(sums.get(n, np.zeros(size)), np.float64) for n, size in lengths.items()}
    if lengths["limbs"]:
        every = np.asarray(sums["limbs"]).reshape(-1, COUNT)
        units = [int(sum(int(d) << (24 * i) for i, d in enumerate(row.tolist()))) for row in every]
        found["limbs"] = np.concatenate([encode(total) for total in units])
    return found


def kinds_from_plain(raw: Mapping[str, Any], site: str) -> dict[str, tuple[str, int]]:
    """The kinds of metrics that a site says it will send.

    Raises:
        WireError: it is something else, or more than any model tells.
    """
    found: dict[str, tuple[str, int]] = {}
    for name, given in raw.items():
        kind, size = given
        most = _MOST_SIZE.get(kind, 0)
        if kind not in _KINDS or not (1 <= size <= most if most else size == 0):
            raise WireError(
                f"metric {name!r:.80} is {given!r:.80}: no kind that adds up", site=site
            )
        found[str(name)] = kind, size
    if len(found) > _MOST_METRICS:
        raise WireError(f"{len(found)} metrics: at most {_MOST_METRICS} are added up", site=site)
    return dict(sorted(found.items()))
