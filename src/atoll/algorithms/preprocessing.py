"""Fitting a preprocessor without pooling: a statistic is an algorithm with one round and no model.

Each site sends the sums of :func:`~atoll.data.preprocessing.column_sums`; what the server adds up is
exact, so one round is enough where a textbook takes two (means, then centred squares): with exact
sums, ``sum x^2 - (sum x)^2 / n`` loses nothing to cancellation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Weighting, Work
from atoll.core.errors import DataError, JobError, raise_faults
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, State, Update
from atoll.data.preprocessing import Plan, Preprocessor, column_sums, finish
from atoll.data.schema import Schema
from atoll.data.table import Table

__all__ = ["FitPreprocessor", "fit_preprocessor", "fitted_at", "site_sums"]


@dataclass(frozen=True)
class FitPreprocessor:
    """The federated fit of a :class:`~atoll.data.preprocessing.Plan`, for any executor.

    A client's data are its typed :class:`~atoll.data.table.Table`. All clients take part in one
    round; the sums are then in the state's slots and :meth:`result` reads them.

    Args:
        plan: what to fit.
        schema: the declared columns, with categories and classes.
    """

    plan: Plan
    schema: Schema

    @property
    def needs_correction(self) -> bool:
        """No: nothing is trained."""
        return False

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """What in the plan does not fit the columns; weights and local work are not used."""
        return [str(fault) for fault in self.plan.faults(self.schema)]

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """State before the round; ``parameters`` may be empty."""
        return State.start(parameters, layout, population)

    def broadcast(self, state: State) -> Broadcast:
        """Nothing but the (empty) model: sites know the plan from the job."""
        return Broadcast(state.round, {"parameters": state.parameters})

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """One site's sums, with weight 1: they are counts already.

        Raises:
            DataError: the client's data are not a typed table.
        """
        if not isinstance(work.data, Table):
            raise DataError("preprocessing is fitted on tables", site=work.client)
        return self.update(work.data), memory

    def update(self, table: Table) -> Update:
        """What a site with this typed table sends."""
        return Update(column_sums(table, self.plan, self.schema), 1.0, len(table))

    def server(self, state: State, aggregate: Aggregate) -> State:
        """Keep the sums of the round."""
        return state.next(state.parameters, **aggregate.sums)

    def staleness(self, tau: int) -> float:
        """1: counts do not fade."""
        return 1.0

    def result(self, state: State) -> Preprocessor:
        """The fitted preprocessor, after the round."""
        return finish(state.slots, self.plan, self.schema)


def fit_preprocessor(
    tables: Mapping[ClientId, Table], plan: Plan, schema: Schema
) -> dict[ClientId, Preprocessor]:
    """Fit ``plan``: one preprocessor for all sites, or each site its own, as its ``mode`` says.

    The shared one comes from the very sums that a federated round folds.

    Args:
        tables: typed tables, see :func:`~atoll.data.schema.check_sites`; those of the training rows.
        plan: what to fit.
        schema: the declared columns, with categories and classes (see
            :func:`~atoll.data.schema.complete_schema`).

    Raises:
        DataError: a number is too large to be summed; names the site.
        JobError: the plan does not fit the columns; all faults are listed.
    """
    updates = {}
    for site, table in tables.items():
        try:
            updates[site] = site_sums(table, plan, schema)
        except DataError as error:
            error.site = site
            raise
    if plan.mode == "site":
        return {site: finish(update.vectors, plan, schema) for site, update in updates.items()}
    fold = Fold()
    for update in updates.values():
        fold.add(update)
    fitted = finish(fold.aggregate().sums, plan, schema)
    return dict.fromkeys(tables, fitted)


def site_sums(table: Table, plan: Plan, schema: Schema) -> Update:
    """The site's half of the fit: what it sends to be folded.

    Raises:
        JobError: the plan does not fit the columns; all faults are listed.
    """
    raise_faults(JobError, "preprocessing", plan.faults(schema))
    return FitPreprocessor(plan, schema).update(table)


def fitted_at(table: Table, sums: Mapping[str, Array], plan: Plan, schema: Schema) -> Preprocessor:
    """The preprocessor of one site, as :func:`fit_preprocessor` gives it to that site.

    Args:
        table: its typed training rows.
        sums: what the :func:`site_sums` of all sites fold to; not read where each site has its own.
        plan: what to fit.
        schema: the declared columns, with categories and classes.

    Raises:
        DataError: the sums are not those of this plan and these columns.
        JobError: the plan does not fit the columns.
    """
    own = site_sums(table, plan, schema).vectors
    if plan.mode == "site":
        return finish(own, plan, schema)
    shapes = {name: vector.shape for name, vector in own.items()}
    fit = shapes == {name: vector.shape for name, vector in sums.items()}
    if not fit or not all(np.isfinite(vector).all() for vector in sums.values()):
        raise DataError(
            "the folded column sums do not fit the declared columns",
            remedy="check that all sites and the server run the same version of Atoll",
        )
    return finish(sums, plan, schema)
