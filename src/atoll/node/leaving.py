"""The gate of a training job at a site: all that its worker tells in the clear passes here.

In the worker, where the rows are, a :class:`Leaving` makes what is told by the rule on small counts of the
dataset's registration (:class:`~atoll.job.discretion.Discretion`), and takes small numbers out of the words
of errors. In the node's own process :func:`checked` looks at what the worker wrote, which runs job code,
before anything of it is sent: there a number of 1 to minimum - 1 rows is refused.

Updates themselves, what is masked, and statistics (:mod:`atoll.node.queries`) have gates of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import PolicyError
from atoll.core.metrics import Metrics
from atoll.core.values import Update
from atoll.job import deployed
from atoll.job.deployed import Data
from atoll.job.discretion import Discretion
from atoll.job.islands import Islands
from atoll.job.schema import JobSpec
from atoll.node.orders import Order, read_result
from atoll.node.plans import read_plan
from atoll.node.rules import Rule
from atoll.runtime.client import Parts
from atoll.wire.messages import ResultBody

__all__ = ["Leaving", "checked", "discreet"]

_ROWS = r"rows?|cells?|examples?|records?|values?|persons?|patients?|labels?|samples?|targets?"
_COUNT = re.compile(rf"\b(\d+)( of \d+)? ((?:[a-z-]+ )?(?:{_ROWS}))\b")


@dataclass(frozen=True)
class Leaving:
    """What one run may tell of one site's rows.

    Args:
        spec: the job.
        site: this one.
        rule: on small counts, see :meth:`of`.
    """

    spec: JobSpec
    site: str
    rule: Discretion

    @classmethod
    def of(cls, spec: JobSpec, site: str, sites: int, own: Rule) -> Leaving:
        """The gate of a run over so many sites, under the dataset's own rule."""
        strict = own.training == "strict"
        made = deployed.discretion_of(spec, sites, own.minimum, own.person, strict=strict)
        return cls(spec, site, made)

    def survey(self, rows: Data) -> dict[str, Any]:
        """What is told of the columns; see :func:`atoll.job.deployed.survey`."""
        return deployed.survey(self.spec, self.site, rows, self.rule)

    def sums(self, schema: Any, rows: Data) -> Update:
        """Sums of the columns of the training rows; see :func:`atoll.job.deployed.column_sums_at`."""
        return deployed.column_sums_at(self.spec, schema, self.site, rows, self.rule)

    def islands(self, schema: Any, sums: Mapping[str, Any], rows: Data) -> Islands:
        """The site's rows, its data card and notes; see :func:`atoll.job.deployed.islands_at`."""
        return deployed.islands_at(self.spec, schema, sums, self.site, rows, self.rule)

    def ready(self, parts: Parts, islands: Islands) -> dict[str, Any]:
        """What is told before the first round; see :func:`atoll.job.deployed.ready`."""
        return deployed.ready(parts, islands, rows=self.rule.counted)

    def figures(self, metrics: Metrics, rows: Data) -> Metrics:
        """The figures of some rows that may be told; under a strict rule none that counts few persons."""
        # Of all rows: who has most of them has no more in any part.
        return self.rule.figures(metrics, self.rule.telling(rows))


def discreet(text: str, minimum: int) -> str:
    """``text`` in which no number of 1 to ``minimum - 1`` rows is told.

    >>> discreet("7 of 120 rows are wrong, 30 cells are empty", 11)
    'fewer than 11 rows are wrong, 30 cells are empty'
    """

    def told(found: re.Match[str]) -> str:
        small = 0 < int(found[1]) < minimum
        return f"fewer than {minimum} {found[3]}" if small else found[0]

    return _COUNT.sub(told, text) if minimum > 1 else text


def checked(order: Order) -> ResultBody:
    """The body of a worker's result, if it may leave.

    Raises:
        PolicyError: it tells of fewer rows than the rule's minimum of persons.
        WireError: it is none, or that of another task.
        StorageError: it cannot be read.
    """
    task, own = order.task, order.dataset.dataset.rule
    body = read_result(Path(order.result), task.id)
    if body.status != "done" or own.minimum <= 1:
        return body
    answer = body.answer or {}
    if task.kind == "ready" and "rows" in answer:
        if answer.get("rows") and any(0 < n < own.minimum for n in _numbers(answer)):
            raise PolicyError("it counts few rows")
        hidden = read_plan(Path(order.plan)).settled.kind in ("masked", "encrypted")
        if not hidden and 0 < int(answer.get("held_out") or 0) < own.minimum:
            raise PolicyError("it counts few held-out rows")
    if 0 < body.examples < own.minimum:
        raise PolicyError("it counts few rows")
    return body


def _numbers(answer: Mapping[str, Any]) -> Iterator[int]:
    """Every number of rows in an answer to ``ready``."""
    card = answer.get("card") or {}
    columns = card.get("columns") or {}
    parts = [card.get("missing"), card.get("classes"), card.get("labels"), {"": answer["rows"]}]
    parts += [column.get("counts") for column in columns.values() if isinstance(column, dict)]
    parts += [{"": c.get("missing")} for c in columns.values() if isinstance(c, dict)]
    for part in parts:
        if isinstance(part, Mapping):
            yield from (int(n) for n in part.values() if isinstance(n, int | np.integer))
