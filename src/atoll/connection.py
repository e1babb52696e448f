"""A researcher's way into a federation: submit a job, watch it, fetch its result.

::

    federation = atoll.connect("me", code="atoll-…")      # once; afterwards atoll.connect("me")
    run = federation.submit("job.toml")
    for record in federation.watch(run):
        print(record["round"], record["train"])
    folder = federation.result(run, "result")

The folder ``me`` holds the researcher's key and what is known of the server. Nothing but this key can
speak for its owner, so the folder is readable by them alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from atoll.core.errors import (
    JobError,
    NotFound,
    QuorumError,
    StateError,
    StorageError,
    Unreachable,
    raise_faults,
)
from atoll.wire.membership import (
    Membership,
    channel_to,
    join,
    membership_in,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec
    from atoll.job.start import Initial, Start
    from atoll.wire.messages import JobReply, MembersReply

__all__ = ["Connection", "Membership", "RunInfo", "connect", "default_home"]

_WAIT = 25.0
_BREATHS = (0.2, 0.5, 1.0, 2.0, 5.0)
_T = TypeVar("_T")
Notice = Callable[[str], None]
"""Told what a person may want to know while they wait."""


def _silent(text: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class RunInfo:
    """One run at the server.

    Args:
        id: of the run.
        name: of the job.
        job_hash: of the job's canonical form.
        by: who submitted it.
        created: seconds since 1970.
        sites: names of the sites.
        status: ``open``, ``completed``, ``failed`` or ``cancelled``.
        phase: how far it is.
        reason: what else is to be said, such as who is missing.
        rounds: rounds ended so far.
        aggregation: whether updates are masked, and why.
        readers: researchers with whom it is shared; told where one run is asked for.
        open: whether every researcher of the federation may read it anyway; likewise.
    """

    id: str
    name: str
    job_hash: str
    by: str
    created: float
    sites: tuple[str, ...]
    status: str
    phase: str
    reason: str
    rounds: int
    aggregation: str = ""
    readers: tuple[str, ...] = ()
    open: bool = True

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ("completed", "failed", "cancelled")


def default_home() -> Path:
    """``ATOLL_HOME``, or ``.atoll/researcher`` in the user's home."""
    return Path(os.environ.get("ATOLL_HOME") or Path.home() / ".atoll" / "researcher")


def connect(
    home: str | Path | None = None, *, code: str = "", proxy: str | None = None
) -> Connection:
    """Connect to the federation that was joined in ``home``; with a ``code``, join it first.

    Args:
        home: folder with the key; made when joining. Default: see :func:`default_home`.
        code: from ``atoll server invite NAME --role researcher``; it works once.
        proxy: ``http://[user:password@]host:port``; empty for none; None: as the environment says.

    Raises:
        NotFound: nobody has joined in this folder, and there is no code.
        StateError: somebody has, and there is a code.
        WireError: the code is mistyped, or the server does not answer.
        AuthError: the code is used up or expired, or the server is not the one it names.
        MissingExtra: ``cryptography`` is not installed.
    """
    folder = default_home() if home is None else Path(home)
    joined = membership_in(folder)
    if code:
        if joined is not None:
            raise StateError(
                f"{joined.name} has joined {joined.federation} in {folder} already",
                remedy="use another folder for another federation, or for a new key",
            )
        joined = join(folder, code, proxy)
    if joined is None:
        raise NotFound(
            f"nobody has joined a federation in {folder}",
            remedy="ask whoever runs the server for a code, then: atoll job join CODE",
        )
    return Connection(folder, joined, proxy=proxy)


class Connection:
    """A federation as a researcher sees it. Methods may be called from several threads.

    Args:
        home: folder with the key.
        membership: whose it is.
        proxy: see :func:`connect`.
    """

    def __init__(self, home: Path, membership: Membership, *, proxy: str | None = None) -> None:
        self.home, self.membership = home, membership
        self._channel = channel_to(home, membership, proxy)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        self._channel.close()

    def submit(
        self,
        job: str | Path | JobSpec,
        *,
        settings: Iterable[str] = (),
        sites: Iterable[str] = (),
        folder: str | Path | None = None,
        initial: Initial | Start | None = None,
    ) -> str:
        """Hand in a job, signed with one's key; returns the id of its run, which begins at once.

        Args:
            job: a job file, or its contents.
            settings: ``a.b=c`` overrides of the file.
            sites: which sites take part; empty for all.
            folder: of the job's own code files; where the job file is when left out.
            initial: the model to begin at, in place of the seed's; see :meth:`start`.

        Raises:
            JobError: with every fault that can be found without the data, those of ``initial`` among them.
            NotFound: the federation has no run of that id.
            Forbidden: the key is no researcher's.
        """
        from atoll.job.load import read_spec
        from atoll.job.package import pack, spec_digest, spec_to_plain
        from atoll.job.start import agreed, begun, misfits
        from atoll.wire.frames import Blob
        from atoll.wire.identity import Identity
        from atoll.wire.messages import INITIAL, BlobRef, JobReply, SubmitBody
        from atoll.wire.submissions import Submission

        if isinstance(job, str | Path):
            path = Path(job)
            spec, where = read_spec(path, settings), path.resolve().parent
        else:
            spec, where = job, Path.cwd()
        code = where if folder is None else Path(folder)
        start = None if initial is None else self.start(initial)
        if start is not None:
            spec = begun(spec, start)
            what = "the initial model does not fit this job"
            raise_faults(JobError, what, misfits(spec, code, start))
        agreed(spec.model.start, start)
        package, first = pack(spec, code), None
        blobs = {name: Blob.of(content) for name, content in package.files.items()}
        with tempfile.TemporaryDirectory() as scratch:
            for name, blob in blobs.items():
                file = Path(scratch) / blob.sha256
                file.write_bytes(package.files[name])
                self._channel.upload(blob, file, "")
            if start is not None:
                first = BlobRef.of(start.write(file := Path(scratch) / "start"))
                self._channel.upload(first.blob, file, "")
        brought = {name: blob.sha256 for name, blob in blobs.items()}
        if first is not None:
            brought[INITIAL] = first.sha256
        mine, names = self.membership, tuple(sorted(set(sites)))
        told = mine.federation, mine.name, spec_digest(spec), brought, names, secrets.token_hex(16)
        body = SubmitBody(
            spec=spec_to_plain(spec),
            job_hash=spec.hash(),
            files={name: BlobRef.of(blob) for name, blob in blobs.items()},
            initial=first,
            signed=Submission(*told).signed(Identity.load(self.home / "identity.pem")),
        )
        run = self._channel.json("POST", "/v1/jobs", body, JobReply).id
        self._note(run, spec.rounds.count if spec.statistics is None else 0)
        return run

    def start(self, initial: Initial | Start) -> Start:
        """A model that a run can begin at.

        Args:
            initial: the id of a run of this federation, whose final model it is; a file of named arrays
                (safetensors or ``.npz``); the folder of a run; or arrays by name. A text that names
                something on this machine is that, before it is an id.

        Raises:
            JobError: it is no model of finite numbers.
            NotFound: the federation has no such run, or it has left no model.
            StateError: it has not ended.
        """
        from atoll.job.start import Start

        if isinstance(initial, Start):
            return initial
        if not isinstance(initial, str) or Path(initial).exists() or _a_path(initial):
            return Start.given(initial)
        with tempfile.TemporaryDirectory() as scratch:
            return Start.read(self._model(initial, Path(scratch) / "model.safetensors"))

    def _model(self, run: str, path: Path) -> Path:
        from atoll.wire.messages import FilesReply

        found = self._channel.json("GET", f"{_path(run)}/files", None, FilesReply).files
        if path.name not in found:
            info = self.show(run)
            if not info.ended:
                raise StateError(
                    f"run {run} has not ended (round {info.rounds}): it has no final model yet",
                    remedy=f"atoll job watch {run}",
                )
            raise NotFound(f"run {run} has left no model: {info.status}", remedy="name another run")
        source = f"{_path(run)}/files/{quote(path.name, safe='')}"
        self._channel.download(found[path.name].blob, path, source=source)
        return path

    def jobs(self) -> tuple[RunInfo, ...]:
        """The federation's runs that may be read, oldest first: all, or one's own and those shared with one."""
        from atoll.wire.messages import JobsReply

        reply = self._channel.json("GET", "/v1/jobs", None, JobsReply)
        return tuple(map(_info, reply.jobs))

    def show(self, run: str, *, patience: float = 0.0, notice: Notice = _silent) -> RunInfo:
        """One run.

        Args:
            run: its id.
            patience: as in :meth:`watch`; 0 does not wait for a server that is away.
            notice: likewise.

        Raises:
            NotFound: there is none with this id.
            Unreachable: no answer for too long.
        """
        from atoll.wire.messages import JobReply

        def ask() -> JobReply:
            return self._channel.json("GET", _path(run), None, JobReply)

        return _info(_patiently(ask, patience, notice))

    def watch(
        self,
        run: str,
        *,
        after: int = 0,
        patience: float = 600.0,
        notice: Notice = _silent,
    ) -> Iterator[Mapping[str, Any]]:
        """The records of a run's rounds as they end, until the run does.

        A server that restarts, or a line that breaks, is waited for.

        Args:
            run: id of the run.
            after: rounds up to this one are left out.
            patience: seconds without any answer after which to give up.
            notice: told when the server cannot be reached, and when it can again.

        Raises:
            NotFound: there is no such run.
            Unreachable: no answer for too long.
        """
        from atoll.wire.messages import RoundsReply

        def ask() -> RoundsReply:
            query = f"after={after}&wait={_WAIT:g}"
            path, timeout = f"{_path(run)}/rounds", _WAIT + 15
            return self._channel.json("GET", path, None, RoundsReply, query=query, timeout=timeout)

        while True:
            reply = _patiently(ask, patience, notice)
            for record in reply.rounds:
                after = max(after, int(record["round"]))
                yield record
            if reply.ended:
                return

    def wait(self, run: str, *, patience: float = 600.0) -> RunInfo:
        """Wait for a run's end; returns how it ended."""
        for _ in self.watch(run, patience=patience):
            pass
        return self.show(run, patience=patience)

    def cancel(self, run: str) -> RunInfo:
        """End a run.

        Raises:
            NotFound: there is none with this id.
            StateError: it has ended.
        """
        from atoll.wire.messages import JobReply

        return _info(self._channel.json("POST", f"{_path(run)}/cancel", None, JobReply))

    def share(self, run: str, name: str) -> RunInfo:
        """Let another researcher read a run of one's own, where runs are not open to all.

        Args:
            run: its id.
            name: of the researcher, as the federation knows them.

        Raises:
            NotFound: there is no such run that one may read, or no researcher of that name.
            Forbidden: it is another's run.
            StateError: it is one's own name.
        """
        return self._shared(run, name, "share")

    def unshare(self, run: str, name: str) -> RunInfo:
        """Take that back; what was fetched before stays fetched.

        Raises:
            NotFound: there is no such run that one may read, or it is not shared with that name.
            Forbidden: it is another's run.
        """
        return self._shared(run, name, "unshare")

    def _shared(self, run: str, name: str, what: str) -> RunInfo:
        from atoll.wire.messages import JobReply, ShareBody

        body = ShareBody(name=name)
        return _info(self._channel.json("POST", f"{_path(run)}/{what}", body, JobReply))

    def result(self, run: str, folder: str | Path) -> Path:
        """Fetch the folder of a run that has ended: model, manifest, metrics, report.

        What is there already is not fetched again, so a call that was cut is simply repeated.

        Args:
            run: id of the run.
            folder: where to put it; made if need be.

        Returns:
            the folder.

        Raises:
            StateError: it has not ended, or another run lies in the folder.
            QuorumError: it has failed, and has left nothing.
            WireError: the server names a file outside the folder.
        """
        from atoll.wire.messages import FilesReply
        from atoll.wire.transfers import holds, inside

        target = Path(folder)
        found = self._channel.json("GET", f"{_path(run)}/files", None, FilesReply).files
        if not found:
            info = self.show(run)
            if not info.ended:
                raise StateError(
                    f"run {run} has not ended (round {info.rounds})",
                    remedy=f"atoll job watch {run}",
                )
            raise QuorumError(f"run {run} has left no files: {info.status}: {info.reason}")
        self._refuse_another(run, target)
        for name, ref in sorted(found.items()):
            path = target / inside(name)
            if not holds(path, ref.blob):
                source = f"{_path(run)}/files/{quote(name, safe='')}"
                self._channel.download(ref.blob, path, source=source)
        return target

    def _refuse_another(self, run: str, folder: Path) -> None:
        """Keep two runs from being mixed: ids are given anew in another federation, or after a restore."""
        old: dict[str, Any] = {}
        with contextlib.suppress(StorageError):  # a damaged one is fetched anew
            old = read_json(folder / "manifest.json")
        if not {"job_hash", "started"} <= set(old):
            return
        info = self.show(run)
        began = datetime.fromtimestamp(info.created, UTC).isoformat(timespec="seconds")
        if (old["job_hash"], old["started"]) != (info.job_hash, began):
            raise StateError(
                f"{folder} holds another run: {old.get('name', '?')!s:.80}, of {old['started']!s:.40}",
                remedy="name another folder with --out, or move that one away",
            )

    def federation(self) -> MembersReply:
        """The members with the fingerprints of their keys."""
        from atoll.wire.messages import MembersReply

        return self._channel.json("GET", "/v1/federation", None, MembersReply)

    def planned(self, run: str) -> int:
        """Rounds that a run was submitted with, if it was submitted from this folder; else 0."""
        return int(read_json(self.home / "submitted.json").get(run, 0))

    def _note(self, run: str, rounds: int) -> None:
        """Remember what a progress bar wants to know; not worth failing for."""
        with contextlib.suppress(OSError, StorageError):
            path = self.home / "submitted.json"
            write_json(path, {**read_json(path), run: rounds})


def _patiently(ask: Callable[[], _T], patience: float, notice: Notice) -> _T:
    """What ``ask`` gives, as soon as the server can be reached.

    Raises:
        Unreachable, StorageError: not within so many seconds.
    """
    tries, began = 0, time.monotonic()
    while True:
        try:
            found = ask()
        except (Unreachable, StorageError) as error:  # its database may be away, or its disk full
            if time.monotonic() - began >= patience:
                raise
            if not tries:
                notice(f"the server does not answer; waiting for it ({error.message})")
            time.sleep(_BREATHS[min(tries, len(_BREATHS) - 1)])
            tries += 1
            continue
        if tries:
            notice("the server answers again")
        return found


def _info(reply: JobReply) -> RunInfo:
    return RunInfo(
        id=reply.id,
        name=reply.name,
        job_hash=reply.job_hash,
        by=reply.by,
        created=reply.created,
        sites=tuple(reply.sites),
        status=reply.status,
        phase=reply.phase,
        reason=reply.reason,
        rounds=reply.rounds,
        aggregation=reply.aggregation,
        readers=tuple(reply.readers),
        open=reply.open,
    )


def _a_path(text: str) -> bool:
    return Path(text).suffix in (".npz", ".safetensors") or Path(text).name != text


def _path(run: str) -> str:
    return f"/v1/jobs/{quote(run, safe='')}"
