"""What a round of a job costs at a site, as privacy events: from the job, in the node's own process.

The worker, which runs job code, is asked for two numbers only: how many rows it trains on and how many
values are noised. How many sites share the noise is read from the model as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.job.declared import Privacy, RowPrivacy
from atoll.job.privacy import client_event
from atoll.job.record import record_event
from atoll.job.schema import JobSpec, StatisticsSpec
from atoll.job.tables import local_work, privacy_of, schedule_of
from atoll.node.policy.ledger import QUERY
from atoll.privacy.dp.events import to_plain
from atoll.runtime.schedule import Synchronous, Turns, turns_of

__all__ = ["Cost", "Events", "Facts", "price"]


Events = tuple[Mapping[str, Any], ...]
"""What is released, in the plain form of :mod:`atoll.privacy.dp.events`."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run at a site.

    Args:
        rows: that it trains on; 0 while that is not known.
        values: of one update that noise is added to; 0 while that is not known.
        cohort: n, the most sites of one sum, as the model came with it; 0 before a round.
        plan: digest of the plan by which all of it was found; by another the same site may train on other rows.
    """

    rows: int = 0
    values: int = 0
    cohort: int = 0
    plan: str = ""


@dataclass(frozen=True)
class Cost:
    """What one round hides, and how.

    Args:
        unit: whose presence is hidden: ``record``, ``person`` or ``site``.
        events: what is released; None while that cannot be told.
        at_server: whether the noise is added by the server, which then has seen the sum without it.
        turns: how often the job may ask one site; None where that does not follow from its rounds, as in an
            asynchronous run.
        figures: what one evaluation of held-out rows releases, with noise; empty where that costs nothing.
        evaluations: how often the job may ask for them.
    """

    unit: str
    events: Events | None
    at_server: bool = False
    turns: Turns | None = None
    figures: Events = ()
    evaluations: Turns | None = None

    @property
    def hides(self) -> bool:
        """Whether it hides anything: exact statistics are counted, and do not."""
        return self.events is None or any(event.get("kind") != QUERY for event in self.events)


def price(spec: JobSpec, facts: Facts) -> Sequence[Cost]:
    """What a round costs, for each unit that the job hides; empty for a job without differential privacy.

    Args:
        spec: the job.
        facts: what is known of the run here.

    Raises:
        JobConflict: no noise keeps what the job promises.
        MissingExtra: dp-accounting is not installed.
    """
    if spec.statistics is not None:
        return [Cost("site", (_query(spec.statistics),))]
    privacy, found = privacy_of(spec), list[Cost]()
    schedule = schedule_of(spec)
    turns = turns_of(schedule, spec.rounds.count)
    told = turns if isinstance(schedule, Synchronous) else None
    if privacy.record is not None:
        events = _of_rows(spec, privacy.record, facts, turns.visits)
        figures = tuple(to_plain(replace(e, count=1)) for e in privacy.record.beside)
        looks = [Turns(turns.rounds, e.count, 1) for e in privacy.record.beside]
        asked = looks[0] if looks else None
        found.append(Cost("record", events, turns=told, figures=figures, evaluations=asked))
    if privacy.client is not None:
        events = _of_site(spec, privacy, facts)
        found.append(Cost("site", events, privacy.client.where == "server", told))
    return found


def _of_rows(spec: JobSpec, record: RowPrivacy, facts: Facts, visits: int) -> Events | None:
    if not facts.rows:
        return None
    event = record_event(record, facts.rows, local_work(spec), visits)
    return (to_plain(event),)


def _of_site(spec: JobSpec, privacy: Privacy, facts: Facts) -> Events | None:
    """One client is one site here."""
    client = privacy.client
    if client is not None and client.where == "sites" and not (facts.values and facts.cohort):
        return None
    event = client_event(privacy, schedule_of(spec), spec.rounds.count, facts.cohort, facts.values)
    return None if event is None else (to_plain(event),)


def _query(asked: StatisticsSpec) -> Mapping[str, Any]:
    """What statistics ask, for the ledger: exact sums, which no epsilon counts."""
    what = [f"{one.name or one.kind} ({one.kind})" for one in asked.analyses]
    return {"kind": QUERY, "analyses": what}
