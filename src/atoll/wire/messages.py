"""The bodies of messages: closed, strict, frozen schemas with limits on every list and text.

Unknown keys are refused, nothing is converted, numbers are finite. A body travels in a frame
(:mod:`atoll.wire.frames`) or as JSON; ``model_dump()`` and ``model_validate`` go both ways.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from atoll.core.errors import AtollError, Fault, WireError
from atoll.wire.frames import Blob
from atoll.wire.status import error_class

__all__ = [
    "INITIAL",
    "LEDGER_HEAD",
    "BlobRef",
    "FaultBody",
    "FilesReply",
    "JobReply",
    "JobsReply",
    "JoinBody",
    "JoinReply",
    "MemberBody",
    "MembersReply",
    "Message",
    "NewsReply",
    "PollReply",
    "ProblemBody",
    "ReceiptBody",
    "ReferenceBody",
    "ResultBody",
    "RoundsReply",
    "ShareBody",
    "SignedBody",
    "SubmitBody",
    "TaskBody",
    "UploadReply",
    "read_body",
    "read_json",
]

INITIAL = "<initial>"
"""Under this name the files of a job hold the model that it begins at, as a frame of named arrays."""

LEDGER_HEAD = r"^([0-9]{1,16}\.[0-9a-f]{64}\.[0-9a-f]{128})?$"
"""How far a site's privacy ledger has come: lines, hash of the last one, the site's signature; or nothing."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f\x7f]+$")]


def _relative(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path:
        raise ValueError("not a path below a folder")
    return path


FilePath = Annotated[
    str,
    Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(_relative),
]
TaskId = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^/\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=20_000)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
NotNegative = Annotated[float, Field(ge=0)]
LedgerHead = Annotated[str, Field(pattern=LEDGER_HEAD)]


class Message(BaseModel):
    """A body: closed (unknown keys are refused), strict about types, frozen, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_M = TypeVar("_M", bound=BaseModel)


def _refusal(kind: type[BaseModel], error: ValidationError) -> WireError:
    faults = [
        Fault(".".join(map(str, fault["loc"])), fault["msg"])
        for fault in error.errors(include_url=False, include_input=False)[:20]
    ]
    return WireError(f"this is no valid {kind.__name__}", faults=faults)


def read_body(kind: type[_M], raw: object) -> _M:
    """Check plain data, such as the body of a frame.

    Raises:
        WireError: with up to 20 faults.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _refusal(kind, error) from error


def read_json(kind: type[_M], raw: bytes) -> _M:
    """Check JSON text.

    Raises:
        WireError: with up to 20 faults.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(kind, error) from error


class BlobRef(Message):
    """Bytes named by their digest, and how many they are."""

    sha256: Hash
    size: Whole

    @classmethod
    def of(cls, blob: Blob) -> BlobRef:
        """A blob's name as it travels."""
        return cls(sha256=blob.sha256, size=blob.size)

    @property
    def blob(self) -> Blob:
        """The name as the rest of the program knows it."""
        return Blob(self.sha256, self.size)


class TaskBody(Message):
    """What one site is asked to do.

    ``version``, ``scale``, ``fraction`` and ``repeat`` are those of
    :class:`~atoll.core.contracts.Task`; ``kept`` is the site's last committed training task of this
    run (its memory belongs to it), empty for none; ``initial`` asks for the initial vector with
    ``ready``; ``deadline`` is in seconds from now. ``said`` is a message of a masked round, whose bytes
    only :mod:`atoll.privacy.secagg` can read: the steps ``commit``, ``share``, ``pledge`` and ``release`` have
    one, and in a masked run ``train``, ``sums`` and ``evaluate``; ``about`` says which of the three the
    steps belong to. ``fit`` asks for the work of a training task whose answer is wanted later, under masks: a
    site says when it is done, and nothing else. An encrypted run has ``greet``, ``deal`` and ``take`` for its
    key, and of the steps ``pledge`` and ``open`` (:mod:`atoll.privacy.he`).
    """

    id: TaskId
    run: Name
    kind: Literal[
        "survey",
        "sums",
        "ready",
        "fit",
        "train",
        "evaluate",
        "commit",
        "share",
        "pledge",
        "release",
        "greet",
        "deal",
        "take",
        "open",
    ]
    number: Whole
    client: Name
    version: Whole = 0
    scale: NotNegative = 1.0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    repeat: Whole = 0
    kept: Annotated[str, Field(max_length=500)] = ""
    broadcast: BlobRef | None = None
    said: BlobRef | None = None
    about: Literal["train", "sums", "evaluate"] = "train"
    plan: BlobRef
    code: Annotated[dict[FilePath, BlobRef], Field(max_length=1000)] = Field(default_factory=dict)
    initial: bool = False
    deadline: NotNegative | None = None


class PollReply(Message):
    """Open tasks of a site, those of the ones it has that are no longer open, and the epoch.

    ``ledger`` is the newest head of the site's privacy ledger that the server has been told of, as the
    site signed it; ``start`` tells starts of the server apart that are of one epoch, after a backup.
    """

    tasks: Annotated[list[TaskBody], Field(max_length=1000)]
    gone: Annotated[list[TaskId], Field(max_length=10_000)]
    epoch: Whole
    start: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    ledger: LedgerHead = ""


class ResultBody(Message):
    """What a site answers to a task; its vectors are the arrays of the same frame.

    ``metrics`` as :func:`~atoll.wire.metrics.metrics_to_plain` writes them, ``seconds`` of work,
    ``reason`` when it was not done, ``answer`` of a preparing task.
    """

    task: TaskId
    status: Literal["done", "failed", "refused"]
    examples: Whole = 0
    weight: NotNegative = 0.0
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: NotNegative = 0.0
    reason: Text = ""
    answer: dict[str, Any] = Field(default_factory=dict)


class ReferenceBody(Message):
    """In place of a long result: the blob that was uploaded before."""

    blob: BlobRef


class ReceiptBody(Message):
    """The result is durable; ``again``: it was already, in the same bytes."""

    task: TaskId
    sha256: Hash
    again: bool


class NewsReply(Message):
    """The answer to a result that asked for news as well: its receipt, and what a poll would have said."""

    receipt: ReceiptBody
    news: PollReply


class UploadReply(Message):
    """How many bytes of an upload are there."""

    received: Whole


class JoinBody(Message):
    """A one-time secret (16 bytes, hex), the key (32 bytes, hex) that signed this request, what it is to be."""

    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    key: Hash
    name: Name | None = None
    role: Literal["site", "researcher"] | None = None
    version: Annotated[str, Field(max_length=100)] = ""


class JoinReply(Message):
    """Who one is from now on, and the key (32 bytes, hex) that signs the server's answers."""

    federation: Name
    name: Name
    role: Literal["site", "researcher"]
    server_key: Hash
    epoch: Whole = 0


class MemberBody(Message):
    """One member of the federation."""

    name: Name
    role: Literal["site", "researcher"]
    fingerprint: Hash
    status: Literal["active", "revoked", "left"]


class MembersReply(Message):
    """The federation, for checking fingerprints by telephone; ``server``: of the server's own key."""

    federation: Name
    server: Hash
    members: Annotated[list[MemberBody], Field(max_length=10_000)]


class SignedBody(Message):
    """A researcher's signature of a job, with what is signed beside it: :mod:`atoll.wire.submissions`."""

    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    key: Hash
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    sites: Annotated[list[Name], Field(max_length=1000)] = Field(default_factory=list)


class SubmitBody(Message):
    """A job: its spec in canonical form with its hash, its own code files, its sites, signed for them.

    ``initial`` is the model that it begins at: a frame of named arrays, whose hash the spec names.
    """

    spec: dict[str, Any]
    job_hash: Hash
    files: Annotated[dict[FilePath, BlobRef], Field(max_length=1000)] = Field(default_factory=dict)
    initial: BlobRef | None = None
    signed: SignedBody

    @property
    def brought(self) -> dict[str, BlobRef]:
        """Everything that comes with it: its code, and the model as :data:`INITIAL`."""
        return self.files if self.initial is None else {**self.files, INITIAL: self.initial}


class JobReply(Message):
    """One run: who submitted what and when, where it stands, and what is to be said of it.

    ``aggregation`` says whether its updates are masked, and why; ``readers`` with whom its researcher
    shares it; ``open`` whether every researcher may read it anyway.
    """

    id: Name
    name: Text
    job_hash: Hash
    by: Name
    created: NotNegative
    sites: list[Name]
    status: Annotated[str, Field(max_length=40)]
    phase: Annotated[str, Field(max_length=40)] = ""
    reason: Text = ""
    rounds: Whole = 0
    aggregation: Text = ""
    readers: list[Name] = Field(default_factory=list)
    open: bool = True


class ShareBody(Message):
    """The researcher who may read a run, or may not any more."""

    name: Name


class JobsReply(Message):
    """All runs the sender may see."""

    jobs: list[JobReply]


class RoundsReply(Message):
    """Records of rounds after the one asked for; ``ended``: no more will come."""

    rounds: list[dict[str, Any]]
    status: Annotated[str, Field(max_length=40)]
    ended: bool
    reason: Text = ""


class FilesReply(Message):
    """The files of a run's folder, by path."""

    files: Annotated[dict[FilePath, BlobRef], Field(max_length=10_000)]


class FaultBody(Message):
    """One of several faults."""

    place: Text = ""
    message: Text = ""
    remedy: Text = ""


class ProblemBody(Message):
    """An error on its way to whoever asked.

    ``epoch`` and ``sequence`` (the highest that was used) come with ``wire.epoch`` alone.
    """

    code: Annotated[str, Field(max_length=100)]
    message: Text
    remedy: Text = ""
    site: Annotated[str, Field(max_length=200)] = ""
    faults: Annotated[list[FaultBody], Field(max_length=200)] = Field(default_factory=list)
    epoch: Whole | None = None
    sequence: Whole | None = None

    @classmethod
    def of(cls, error: AtollError) -> ProblemBody:
        """An error as it travels, cut to the limits."""
        return cls(
            code=error.code,
            message=error.message[:20_000],
            remedy=error.remedy[:20_000],
            site=error.site[:200],
            faults=[
                FaultBody(
                    place=fault.place[:20_000],
                    message=fault.message[:20_000],
                    remedy=fault.remedy[:20_000],
                )
                for fault in error.faults[:200]
            ],
        )

    def error(self, status: int) -> AtollError:
        """The error that came with HTTP ``status``."""
        return error_class(self.code, status)(
            self.message,
            remedy=self.remedy,
            site=self.site,
            faults=[Fault(f.place, f.message, f.remedy) for f in self.faults],
        )
