"""The HTTP application without sockets: requests signed as real ones are, handed over as ASGI does."""

from __future__ import annotations

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from atoll.server.blobs.folder import FolderBlobs
from atoll.server.service import Service
from atoll.server.settings import Settings
from atoll.server.store.contract import Invite
from atoll.server.store.memory import MemoryStore
from atoll.server.web.api import ROUTES
from atoll.server.web.bell import Bell
from atoll.server.web.limits import Limits
from atoll.server.web.serving import Premises, build_app
from atoll.wire.identity import Identity
from atoll.wire.signatures import sign_request, verify_response

FEDERATION = "hearts-0123"


@dataclass
class Heard:
    """An answer."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json["code"]


@dataclass
class Member:
    """Somebody with a key who signs what they ask."""

    name: str
    key: Identity = field(default_factory=Identity.fresh)
    sequence: int = 0


class Bench:
    """A server without sockets, on a clock of its own.

    Args:
        folder: for blobs and bodies.
        routes: the table; the real one when left out.
        limits: see there.
        runs: who may read them.
        settings: of the service.
    """

    def __init__(
        self,
        folder: Path,
        *,
        routes=ROUTES,
        limits: Limits | None = None,
        runs="open",
        **settings,
    ) -> None:
        self.time = 1_000_000.0
        self.folder = folder
        self.store = MemoryStore()
        self.service = Service(
            self.store,
            FolderBlobs(folder / "blobs"),
            folder,
            now=lambda: self.time,
            settings=Settings(runs=runs, **settings),
            seal=(FEDERATION, lambda message: b""),
        )
        self.service.start()
        self.loop = asyncio.new_event_loop()
        self.threads = ThreadPoolExecutor(4)
        self.bell = Bell(self.loop)
        self.service.on_change = self.bell.ring
        self.identity = Identity.fresh()
        self.trouble = ""
        self.premises = Premises(
            federation=FEDERATION,
            identity=self.identity,
            store=self.store,
            service=self.service,
            incoming=folder / "incoming",
            token=b"open sesame",
            limits=limits or Limits(),
            now=lambda: self.time,
            runs=runs,
        )
        self.app = build_app(
            self.premises,
            self.threads,
            self.threads,
            self.bell,
            trouble=lambda: self.trouble,
            routes=routes,
        )
        self.members: dict[str, Member] = {}

    def close(self) -> None:
        self.threads.shutdown()
        self.loop.close()

    @property
    def epoch(self) -> int:
        return self.service.epoch

    def secret(self, name: str, role: str = "site", seconds: float = 60.0) -> bytes:
        secret = hashlib.sha256(f"{name}{role}{len(self.store.invites())}".encode()).digest()[:16]
        digest = hashlib.sha256(secret).hexdigest()
        self.store.add_invite(Invite(digest, name, role, self.time + seconds))
        return secret

    def admit(self, name: str, role: str = "site") -> Member:
        """A member, known to the server."""
        member = Member(name)
        self.service.join(self.secret(name, role), "", member.key.public_bytes)
        self.members[name] = member
        self.later(2.0)
        return member

    def later(self, seconds: float) -> None:
        self.time += seconds

    def signed(self, member: Member, method, path, query="", body=b"", **changes) -> dict:
        """The headers of a request; ``changes`` make it a lie."""
        member.sequence += 1
        facts = {
            "method": method,
            "path": path,
            "query": query,
            "body_digest": hashlib.sha256(body).digest(),
            "federation": FEDERATION,
            "epoch": self.epoch,
            "sequence": member.sequence,
            "created": int(self.time),
        }
        return sign_request(changes.pop("key", member.key), **facts | changes)

    def ask(self, member: Member | None, method, path, query="", body=b"", **more) -> Heard:
        """One request, signed by ``member``, and its answer, whose signature is checked."""
        headers = {} if member is None else self.signed(member, method, path, query, body)
        heard = self.send(method, path, query, body, headers, **more)
        if member is not None and "signature" in heard.headers:
            self.check(heard, headers)
        return heard

    def check(self, heard: Heard, asked: dict) -> None:
        """The answer is signed by the server and belongs to this very request."""
        from atoll.wire.signatures import read_request

        claim = read_request("GET", "/", "", asked)  # only its signature and number are looked at
        digest = verify_response(
            self.identity.public_bytes,
            heard.status,
            heard.headers,
            sequence=claim.sequence,
            answers=claim.signature,
        )
        assert digest == hashlib.sha256(heard.body).digest()

    def send(self, method, path, query="", body=b"", headers=(), **more) -> Heard:
        """One request as it stands, and its answer."""
        return self.loop.run_until_complete(self.sent(method, path, query, body, headers, **more))

    async def sent(
        self, method, path, query="", body=b"", headers=(), *, declared=None, pieces=None,
        address="192.0.2.1", gone=None, guest=None,
    ) -> Heard:  # fmt: skip
        listed = list(dict(headers).items() if isinstance(headers, dict) else headers)
        size = len(body) if declared is None else declared
        if size or method != "GET":
            listed.append(("content-length", str(size)))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(n.lower().encode(), v.encode()) for n, v in listed],
            "client": (address, 1),
            "extensions": {"atoll.guest": {"guest": guest}},
        }
        waiting = [body] if pieces is None else pieces if isinstance(pieces, list) else list(pieces)
        sent = []

        async def receive():
            if waiting:
                piece = waiting.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(waiting)}
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        start = sent[0]
        return Heard(
            start["status"],
            {n.decode(): v.decode() for n, v in start["headers"]},
            b"".join(m["body"] for m in sent[1:]),
        )
