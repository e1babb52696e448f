"""Rounds of a run whose sum alone the server sees, be it by masks or by ciphertexts."""

from __future__ import annotations

import time
from collections.abc import Callable

from atoll.node.orders import Order, Report
from atoll.node.run_folder import Held
from atoll.node.site import Site
from atoll.node.sums.encrypting import KEY_STEPS, Encrypted
from atoll.node.sums.masking import SUBJECTS, Find, Masked
from atoll.wire.messages import TaskBody

__all__ = ["SUBJECTS", "Summed"]

_OWN = (*KEY_STEPS, "open")
"""Steps that masked rounds do not have."""


class Summed:
    """What a run at this site does outside its worker; the job says which of the two it is.

    Args:
        run: its id.
        site: what all runs share.
        now: seconds since 1970.
    """

    def __init__(self, run: str, site: Site, now: Callable[[], float] = time.time) -> None:
        self._masked, self._encrypted = Masked(run, site, now), Encrypted(run, site, now)

    def concerns(self, body: TaskBody, find: Find) -> bool:
        """Whether the task belongs to a round whose sum alone is seen."""
        return self._for(body, find).concerns(body, find)

    def first(self, body: TaskBody, find: Find) -> TaskBody | None:
        """The work to begin with after ``body`` was looked at; None when there is none to begin."""
        return self._for(body, find).first(body)

    def keep(self, order: Order, report: Report) -> bool:
        """Remember what the worker made, if it belongs to such a round; whether it does."""
        return self._encrypted.keep(order, report) or self._masked.keep(order, report)

    def held(self, body: TaskBody, find: Find) -> Held | None:
        """The answer to a task, in the spool; None while the worker's integers are needed for it.

        Raises:
            StorageError: it cannot be kept; trying again is safe.
            AtollError: nothing is said.
        """
        return self._for(body, find).held(body, find)

    def _for(self, body: TaskBody, find: Find) -> Masked | Encrypted:
        if body.kind in _OWN:
            return self._encrypted
        shared = body.kind in (*SUBJECTS, "pledge")
        encrypted = shared and self._encrypted.due(find(body.plan.blob))
        return self._encrypted if encrypted else self._masked
