"""The gate of a training job at a site: all that its worker tells in the clear passes here.

In the worker, where the rows are, a :class:`Leaving` makes what is told by the rule on small counts of the
dataset's registration (:class:`~atoll.job.discretion.Discretion`), and takes small numbers out of the words
of errors. In the node's own process :func:`checked` looks at what the worker wrote, which runs job code,
before anything of it is sent: there a number of 1 to minimum - 1 rows is refused.

Updates themselves, what is masked, and statistics (:mod:`atoll.node.policy.queries`) have gates of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.core.errors import PolicyError
from atoll.core.metrics import Metrics
from atoll.core.values import Update
from atoll.job import deployed
from atoll.job.deployed import Data
from atoll.job.discretion import Discretion
from atoll.job.islands import Islands
from atoll.job.schema import JobSpec
from atoll.node.near import Seen
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
        return cls(spec, site, replace(made, inputs=own.inputs and not spec.privacy.private))

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
        """What is told before the first round; see :func:`atoll.job.deployed.ready`.

        No card of a job that promises differential privacy: it would be outside epsilon.
        """
        answer = deployed.ready(parts, islands, rows=self.rule.counted)
        privacy = self.spec.privacy
        if privacy.private:
            # Exact means and counts, and the hash of all cells, are in no account of privacy.
            answer |= {"card": {}, "notes": [], "fingerprint": ""}
        # How batches fall tells how many rows there are.
        hide = self.rule.masked and not self.rule.counted
        way = _COUNT.sub(r"some \3", answer["way"]) if hide else answer["way"]
        return {**answer, "way": discreet(way, self.rule.minimum)}

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


def checked(order: Order, seen: Seen | None = None) -> ResultBody:
    """The body of a worker's result, if it may leave.

    Args:
        order: names the result's file.
        seen: what has been read of it.

    Raises:
        PolicyError: it tells of fewer rows than the rule's minimum of persons, or hands out what is kept.
        WireError: it is none, or that of another task.
        StorageError: it cannot be read.
    """
    task, own = order.task, order.dataset.dataset.rule
    body = read_result(seen or Seen(Path(order.result)), task.id)
    if body.status != "done":
        return body
    if body.answer.get("inputs") and not (own.inputs and _counted_by_nobody(order)):
        raise PolicyError("it hands out means and scales, which this site's rule does not allow")
    if own.minimum <= 1:
        return body
    rows, tests = [float(body.examples)], list[float]()
    if task.kind == "ready":
        rows += _numbers(body.answer, ("rows", "card"))
        tests += _numbers(body.answer, ("held_out",))
    if not any(0 < number < own.minimum for number in (*rows, *tests)):
        return body
    plan = read_plan(Path(order.plan))  # which costs something, and is hardly ever needed
    if plan.spec.statistics is not None:  # no code of the job's has written it
        return body
    if any(0 < number < own.minimum for number in rows):
        raise PolicyError("it counts few rows")
    if not plan.settled.hidden:
        raise PolicyError("it counts few held-out rows")
    return body


def _counted_by_nobody(order: Order) -> bool:
    """Whether the job promises no differential privacy: sums of columns are in no account of it."""
    return not read_plan(Path(order.plan)).spec.privacy.private


_COUNTED = ("rows", "missing", "counts", "classes", "labels")
"""Keys of a card whose numbers are numbers of rows."""


def _numbers(answer: Any, keys: Sequence[str]) -> Iterator[float]:
    """Numbers of rows in what a worker answered, whatever form it gave that."""
    if not isinstance(answer, Mapping):
        return
    for key in keys:
        told = answer.get(key)
        if key == "card" and isinstance(told, Mapping):
            yield from _numbers(told, _COUNTED)
            columns = told.get("columns")
            for column in columns.values() if isinstance(columns, Mapping) else ():
                yield from _numbers(column, _COUNTED)
            continue
        for number in told.values() if isinstance(told, Mapping) else (told,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield number
