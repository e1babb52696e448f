"""Jobs that wait for their steward: what each of them asks for, and what was decided.

A site with ``policy.approval`` takes part in a job only after its steward has approved just that one. What a
job asks for is a *request*: its definition, the bytes of its code, the dataset with the columns that were
registered, who has submitted it and who takes part, in which federation. A request is known by its digest;
with one byte changed it is another, of which nothing was said. It does not depend on the run: a job that is
submitted again once it was approved takes part at once::

    approvals/
      3f2a…/
        request.json     what is asked for, of which run first, and when
        code/            the files, for reading
        decision.json    yes or no, signed with the site's key; missing until then

Decisions are read for each task. One that is taken back counts from a run's next task on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from atoll.core.errors import AuthError, NotFound, PolicyError, StorageError, WireError
from atoll.job.definition import definition_hash
from atoll.job.package import MOST_BYTES
from atoll.node.home import write_text
from atoll.node.journal import Signer
from atoll.wire.identity import check_signature
from atoll.wire.messages import BlobRef
from atoll.wire.transfers import inside
from atoll.wire.trouble import remedy_of, unreadable

__all__ = ["Approvals", "Decision", "Request", "Told", "Waiting"]

Told = Callable[[str, bool, str, float, str], None]
"""Gets a request's digest and what was decided of it, as :class:`Decision` has it."""

_MOST = 1000
"""Requests of which nothing was said yet; a server that makes up more gets a refusal and no file."""


@dataclass(frozen=True)
class Request:
    """What a job asks of this site.

    Args:
        job: its definition, as JSON.
        code: SHA-256 of each file that it brings.
        dataset: name of the dataset that it reads.
        columns: kind of each of its columns, as registered.
        researcher: who has signed it.
        sites: who takes part, as the server says.
        federation: in which all of these have their names.
    """

    job: Mapping[str, Any]
    code: Mapping[str, str]
    dataset: str
    columns: Mapping[str, str] = field(default_factory=dict)
    researcher: str = ""
    sites: tuple[str, ...] = ()
    federation: str = ""

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "job": dict(self.job),
            "code": dict(self.code),
            "dataset": self.dataset,
            "columns": dict(self.columns),
            "researcher": self.researcher,
            "sites": sorted(self.sites),
            "federation": self.federation,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it, in hex."""
        return definition_hash(self.to_plain())


@dataclass(frozen=True)
class Decision:
    """What a steward has said of a request.

    Args:
        approved: yes or no.
        by: the user of the machine who said it.
        time: seconds since 1970.
        reason: for the researcher, where it is no.
    """

    approved: bool
    by: str
    time: float
    reason: str = ""

    def signed(self, digest: str) -> bytes:
        """What the site's key signs."""
        return b"atoll approval\n" + json.dumps([digest, *vars(self).values()]).encode()


@dataclass(frozen=True)
class Waiting:
    """A request as it lies at the site.

    Args:
        digest: its own.
        request: what is asked for.
        run: the first that asked.
        asked: when, in seconds since 1970.
        code: folder of its files.
        decision: None until there is one.
    """

    digest: str
    request: Request
    run: str
    asked: float
    code: Path
    decision: Decision | None


class Approvals:
    """The requests in a folder.

    Args:
        folder: of all of them.
        key: the site's.
        federation: that the site has joined.
        files: where a blob lies that was downloaded; for the node only.
        code_only: whether jobs without code of their own need no approval.
        told: gets each decision before it first counts in this process, and again when it was changed.
        now: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        key: Signer,
        *,
        federation: str = "",
        files: Callable[[str], Path] = Path,
        code_only: bool = False,
        told: Told | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.federation = federation
        self._folder, self._key, self._files = folder, key, files
        self._code_only, self._told, self._now = code_only, told, now
        self._lock = threading.Lock()
        self._read: dict[str, tuple[tuple[int, int], Decision]] = {}  # as its file was then

    # The node -----------------------------------------------------------------------------------

    def check(self, run: str, request: Request, code: Mapping[str, BlobRef]) -> None:
        """Let a task pass whose job was approved; of another one the steward is asked.

        Args:
            run: of the task.
            request: what its job asks for.
            code: its files, for those who are asked.

        Raises:
            PolicyError: it is not approved, or was denied.
            StorageError: a decision is damaged, or the request cannot be written down.
        """
        if self._code_only and not code:
            return
        decision = self._decision(request.digest)
        if decision is None:
            self._ask(run, request, code)
            raise PolicyError(
                f"its steward has to approve this job first, and was asked (request {request.digest[:12]})",
                remedy="submit it again, unchanged, when they have: atoll node jobs approve",
            )
        if not decision.approved:
            said = f": {decision.reason}" if decision.reason else ""
            raise PolicyError(f"its steward has denied this job{said}", remedy="ask them")

    def _ask(self, run: str, request: Request, code: Mapping[str, BlobRef]) -> None:
        """Keep a request with its code, in full or not at all."""
        with self._lock, _writing(self._folder):
            place = self._folder / request.digest
            if place.exists():
                return
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if sum(1 for _ in self._names(waiting=True)) >= _MOST:
                raise PolicyError(
                    f"{_MOST} jobs wait for the steward of this site already",
                    remedy="ask its operator to decide of them: atoll node jobs list",
                )
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as made:
                aside = Path(made) / "request"
                (aside / "code").mkdir(parents=True)
                if sum(ref.size for ref in code.values()) > MOST_BYTES:
                    raise WireError(
                        f"more than {MOST_BYTES:,} bytes of code", remedy="is the server sound?"
                    )
                for name, ref in code.items():
                    file = aside / "code" / inside(name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._files(ref.sha256), file)
                told = {**request.to_plain(), "run": run, "asked": self._now()}
                write_text(aside / "request.json", json.dumps(told, indent=2) + "\n")
                aside.replace(place)

    def _decision(self, digest: str) -> Decision | None:
        path = self._folder / digest / "decision.json"
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        state = found.st_mtime_ns, found.st_ino
        known = self._read.get(digest)
        if known is None or known[0] != state:
            made = self._verified(path, digest)
            if self._told is not None:
                self._told(digest, made.approved, made.by, made.time, made.reason)
            known = self._read[digest] = state, made
        return known[1]

    def _verified(self, path: Path, digest: str) -> Decision:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            made = Decision(raw["approved"], raw["by"], raw["time"], raw["reason"])
            check_signature(
                self._key.public_bytes, bytes.fromhex(raw["signature"]), made.signed(digest)
            )
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, KeyError, TypeError, AuthError) as error:
            raise StorageError(
                f"{path} is not what this site's key has signed",
                remedy="decide again: atoll node jobs approve, or deny",
            ) from error
        if made.approved is not True and made.approved is not False:
            raise StorageError(f"{path} says neither yes nor no", remedy="decide again")
        return made

    # The steward --------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests nothing was said of yet."""
        return sum(1 for _ in self._names(waiting=True))

    def all(self) -> list[Waiting]:
        """Every request, the newest first.

        Raises:
            StorageError: one of them cannot be read.
        """
        return sorted(map(self._found, self._names()), key=lambda each: -each.asked)

    def find(self, start: str) -> Waiting:
        """The request whose digest begins so.

        Raises:
            NotFound: there is none, or several.
            StorageError: it cannot be read.
        """
        found = [name for name in self._names() if start and name.startswith(start)]
        if len(found) != 1:
            what = "no request" if not found else f"{len(found)} requests, not one,"
            raise NotFound(
                f"{what} begins with {start!r}", remedy="atoll node jobs list shows them"
            )
        return self._found(found[0])

    def decide(self, digest: str, *, approved: bool, by: str, reason: str = "") -> Decision:
        """Say yes or no, or change one's mind; counts for the next task of any run.

        Raises:
            StorageError: it cannot be written.
        """
        made = Decision(approved, by, self._now(), reason)
        signature = self._key.sign(made.signed(digest)).hex()
        told = {**vars(made), "signature": signature}
        write_text(self._folder / digest / "decision.json", json.dumps(told, indent=2) + "\n")
        return made

    def _names(self, *, waiting: bool = False) -> Iterator[str]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self._folder, error) from error
        for name in names:
            decided = (self._folder / name / "decision.json").exists()
            if not name.startswith(".") and not (waiting and decided):
                yield name

    def _found(self, digest: str) -> Waiting:
        path = self._folder / digest / "request.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            run, asked = str(raw.pop("run")), float(raw.pop("asked"))
            request = Request(**{**raw, "sites": tuple(raw["sites"])})
            sound = request.digest == digest
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise StorageError(f"{path} is not what was asked for", remedy="remove its folder")
        return Waiting(digest, request, run, asked, path.with_name("code"), self._decision(digest))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}", remedy=remedy_of(error)
        ) from error
