"""Answers that wait to be durable until the round is that they complete: one wait for the disk in place of two.

Whoever completes a round has nothing of a receipt that is given before the round is computed: the next task
comes after that. So a short answer whose sender waits for news as well is taken in at once, and written in
the transaction that commits the round, without its bytes: the round's checkpoint is what came of them. Until
then nobody is told that it is there. A server that dies before has never had it, and its site sends it again.

What does not end in a round soon is written by itself, as soon as its time is over or another call is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.core.errors import AtollError
from atoll.server.store.contract import Contribution, Heard
from atoll.wire.messages import ReceiptBody

__all__ = ["Early"]


@dataclass(eq=False)
class Early:
    """An answer that was taken in and may not be durable yet.

    Args:
        row: what will be written.
        until: when it is written by itself, in seconds since 1970.
        found: what the store said of it, or why it is not written; None before.
    """

    row: Contribution
    until: float
    found: Heard | AtollError | None = None

    def receipt(self) -> ReceiptBody | None:
        """The receipt; None as long as the answer is not durable.

        Raises:
            AtollError: why there will be none.
        """
        if isinstance(self.found, AtollError):
            raise self.found
        if self.found is None:
            return None
        row = self.row
        return ReceiptBody(task=row.task, sha256=row.sha256, again=self.found == "same")
