"""The node's words to the server, over a signed channel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from atoll.core.errors import AtollError, AuthError, StorageError, Unreachable, WireError
from atoll.core.layout import Array
from atoll.node.run_folder import Held
from atoll.wire.frames import Blob
from atoll.wire.messages import (
    BlobRef,
    MembersReply,
    NewsReply,
    PollReply,
    ReceiptBody,
    ReferenceBody,
    read_body,
    read_json,
)
from atoll.wire.news import NEWS, alone, opened

__all__ = ["INLINE", "Channel", "Link", "passing"]

INLINE = 1 << 20
"""Bytes of the longest result that is sent as the request itself; longer ones are uploaded first."""
_PATIENCE = 15.0
"""Seconds beyond the wait that was asked for, after which a poll counts as lost."""
_ANSWER = 60.0
"""Seconds a receipt may take."""
_MOST_QUERY = 7000


def passing(error: AtollError) -> bool:
    """Whether another try may help; a fault of the server itself is mended by its next start."""
    known = isinstance(error, Unreachable | AuthError | StorageError)
    return known or type(error) is AtollError


class Channel(Protocol):
    """What a node needs of :class:`atoll.wire.https.Channel`."""

    def call(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        kind: str = "application/json",
        timeout: float = 60.0,
        digest: bytes | None = None,
    ) -> Any:
        """One request; the reply has ``status``, ``headers`` and ``body``."""
        ...

    def download(self, blob: Blob, path: Path) -> None:
        """Bring a blob to ``path``."""
        ...

    def upload(self, blob: Blob, path: Path, task: str) -> None:
        """Bring the file ``path`` to the server."""
        ...


class Link:
    """A site's requests.

    Args:
        channel: to the server.
        head: how far the site's privacy ledger has come, told with each result.
        seen: which start of the server was seen last, told with each question and each result.
    """

    def __init__(
        self,
        channel: Channel,
        head: Callable[[], str] | None = None,
        seen: Callable[[], str] = str,
    ) -> None:
        self._channel, self._head, self._seen = channel, head, seen

    def poll(self, have: Collection[str], wait: int) -> tuple[PollReply, Mapping[str, Array]]:
        """Ask for news; the server answers when there is some, or after ``wait`` seconds.

        Args:
            have: ids of tasks that this node is at work on or keeps the answer of, and of runs of
                which it keeps anything.
            wait: seconds.

        Returns:
            the news (``gone``: which of ``have`` the server does not need any more), and small blobs
            that the tasks name, by digests that are theirs.

        Raises:
            AtollError: unreachable, refused, or no valid answer.
        """
        asked = f"have={_listed(have)}&wait={wait}&first=1"
        asked += f"&seen={seen}" if (seen := self._seen()) else ""
        reply = self._channel.call("GET", "/v1/poll", query=asked, timeout=wait + _PATIENCE)
        body, blobs = _told(reply)
        return read_body(PollReply, body), blobs

    def deliver_and_ask(
        self, held: Held, raw: bytes, have: Collection[str], wait: float
    ) -> tuple[PollReply, Mapping[str, Array]] | None:
        """Hand in a short result and ask for news at once.

        Args:
            held: the result.
            raw: its bytes.
            have: as in :meth:`poll`.
            wait: seconds that the receipt, which comes with the news, may wait for some.

        Returns:
            what :meth:`poll` returns; None from a server that does not answer both at once.

        Raises:
            AtollError: as :meth:`deliver`.
        """
        asked = f"have={_listed(have)}&wait={wait:g}&first=1"
        reply = self._hand_in(held, raw, asked, wait + _ANSWER)
        if reply.headers.get("content-type") == "application/json":
            _check(held, read_json(ReceiptBody, reply.body))
            return None
        body, blobs = _told(reply)
        told = read_body(NewsReply, body)
        _check(held, told.receipt)
        return told.news, blobs

    def deliver_long(self, held: Held, write_through: Callable[[], None]) -> ReceiptBody:
        """Hand in a result of any length, which is brought to the server while it is written to the disk.

        Args:
            held: the result.
            write_through: makes it durable here; done before the server takes the bytes for a result.

        Raises:
            StorageError: what ``write_through`` raises.
            AtollError: as :meth:`deliver`.
        """
        trouble: list[AtollError] = []

        def write() -> None:
            try:
                write_through()
            except AtollError as error:
                trouble.append(error)

        writing = threading.Thread(target=write, name=f"spool {held.run}", daemon=True)
        writing.start()
        try:
            self._channel.upload(held.blob, held.path, held.task)
        finally:
            writing.join()
        if trouble:
            raise trouble[0]
        return self.deliver(held, None)

    def deliver(self, held: Held, raw: bytes | None) -> ReceiptBody:
        """Hand in a result; when this returns, the server has it for good.

        Args:
            held: the result.
            raw: its bytes; None where they have been uploaded.

        Raises:
            AtollError: unreachable, not wanted any more, or refused.
        """
        reply = self._hand_in(held, raw, "", _ANSWER)
        return _check(held, read_json(ReceiptBody, reply.body))

    def _hand_in(self, held: Held, raw: bytes | None, asked: str, timeout: float) -> Any:
        """A result's bytes, or where they have been uploaded its name."""
        path = f"/v1/results/{quote(held.task, safe='')}"
        ledger = f"ledger={self._head()}" if self._head is not None else ""
        start = f"seen={seen}" if (seen := self._seen()) else ""
        query = "&".join(filter(None, (ledger, asked, start)))
        if raw is None:
            named = ReferenceBody(blob=BlobRef.of(held.blob)).model_dump_json().encode()
            return self._channel.call("POST", path, query=query, body=named, timeout=timeout)
        return self._channel.call(
            "POST",
            path,
            query=query,
            body=raw,
            kind="application/octet-stream",
            timeout=timeout,
            digest=bytes.fromhex(held.blob.sha256),
        )

    def download(self, blob: Blob, path: Path) -> None:
        """Bring a blob to ``path``, its digest checked."""
        self._channel.download(blob, path)

    def members(self) -> MembersReply:
        """The federation."""
        reply = self._channel.call("GET", "/v1/federation", timeout=_ANSWER)
        return read_json(MembersReply, reply.body)

    def leave(self) -> None:
        """Leave the federation."""
        self._channel.call("POST", "/v1/leave", timeout=_ANSWER)


def _told(reply: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """News and the blobs that came along, in whichever of the two forms the server speaks."""
    if reply.headers.get("content-type") == NEWS:
        return opened(reply.body, reply.first)
    return alone(reply.body)


def _check(held: Held, receipt: ReceiptBody) -> ReceiptBody:
    """A receipt, which is the one for this result.

    Raises:
        WireError: it is another's.
    """
    if receipt.task != held.task or receipt.sha256 != held.blob.sha256:
        raise WireError(f"the receipt for {held.task!r} is for something else")
    return receipt


def _listed(names: Collection[str]) -> str:
    """Names for a query, as many as it may hold; tasks come before runs, whose ids have no dots.

    What is left out is told later: the server says the same of it again.
    """
    text = ""
    for name in sorted(names, key=lambda n: ("." not in n, n)):
        word = quote(name, safe="")
        if len(text) + len(word) >= _MOST_QUERY:
            break
        text += f",{word}" if text else word
    return text
