"""What sites say of the server's starts that they saw: a server that was put back from a backup learns of it.

Each start has an epoch, and draws something that tells it from others of that epoch; the store keeps both. A
copy that is put back and started comes to epochs that its sites saw before it: those were other starts. A site
says with each question for tasks, and with each answer, which start it saw last. Where the store knows another
start of that epoch, or has not come so far, it has lost what was done since the copy was made, and its new
runs may bear ids of lost ones, to whose tasks that site has answers: it is asked for nothing before the
operator knows.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping

from atoll.core.errors import PutBack
from atoll.core.values import ClientId
from atoll.server.office import Office
from atoll.server.store.contract import RESTORED, Event

__all__ = ["PUT_BACK", "Epochs", "put_back"]

log = logging.getLogger("atoll.server")

PUT_BACK = "put back"
"""Kind of the event of a site that saw a start of the server that its store does not know."""

_SEEN = re.compile(r"([0-9]{1,15})(?:-([0-9a-f]{16}))?")


class Epochs:
    """The starts of one server. Any thread may ask.

    Args:
        office: of the server.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._starts: Mapping[int, str] = {}
        self._lock = threading.Lock()
        self._strange: dict[ClientId, int] = {}

    def begin(self) -> None:
        """Read what the store knows, this start included."""
        self._starts = self._office.store.starts()

    @property
    def strange(self) -> int:
        """How many sites say that they saw a start that the store does not know."""
        return len(self._strange)

    def known(self, seen: str) -> bool:
        """Whether the store says nothing against a start: ``epoch-drawn``, or ``epoch``, or empty."""
        found = _SEEN.fullmatch(seen)
        if found is None:
            return True
        epoch, drawn = int(found[1]), found[2] or ""
        # Of epochs before a restore, and of starts of an older version, the store knows nothing.
        here = self._starts.get(epoch, drawn)
        return epoch <= self._office.epoch and drawn in ("", here)

    def doubts(self, site: ClientId, seen: str) -> bool:
        """Whether :meth:`hear` has anything to do."""
        return site in self._strange or not self.known(seen)

    def hear(self, site: ClientId, seen: str) -> None:
        """``site`` saw that start last.

        Raises:
            PutBack: the store does not know it; the site waits until the operator has seen to it.
            FenceError: another server has taken over meanwhile, and the site has seen that.
        """
        if self.known(seen):
            self._strange.pop(site, None)
            return
        office, epoch = self._office, int(seen.partition("-")[0])
        office.be_sure()
        with self._lock:
            new = self._strange.get(site) != epoch
            self._strange[site] = epoch
        if new:
            text = f"it saw a start in epoch {epoch} that this store does not know; here: {office.epoch}"
            log.error("%s: %s. %s", site, text, _way_out(max(epoch, office.epoch)))
            office.event(PUT_BACK, text, site=site)
        self.check(site)

    def check(self, site: ClientId) -> None:
        """Refuse what a site asks or brings that saw a start which the store does not know.

        Raises:
            PutBack: it did.
        """
        epoch = self._strange.get(site)
        if epoch is not None:
            raise PutBack(
                f"the server was put back from a backup: this site saw its epoch {epoch}, and the server "
                "knows nothing of that start",
                remedy=f"its operator: {_way_out(max(epoch, self._office.epoch))}",
            )


def put_back(events: Iterable[Event], epoch: int) -> tuple[str, str]:
    """What an operator is told of a server that was put back from a backup, and what to do about it.

    Both are empty where nothing says so.

    Args:
        events: of its log, in order; those of the kinds ``RESTORED`` and :data:`PUT_BACK` count.
        epoch: of its last start.
    """
    last: Event | None = None
    most = epoch
    for event in events:
        if event.kind == RESTORED:
            last, most = None, epoch
        elif event.kind == PUT_BACK:
            last, found = event, re.search(r"epoch ([0-9]+)", event.text)
            most = max(most, int(found[1]) if found else 0)
    if last is None:
        return "", ""
    return f"put back from a backup: {last.site} says that {last.text}", _way_out(most)


def _way_out(seen: int) -> str:
    return (
        "atoll server cancel RUN for each that was submitted since it was put back, stop the server, "
        f"atoll server restored FOLDER --seen {seen}, start it, submit them again"
    )
