"""The tables of the database; :mod:`atoll.server.store.migrations` makes them, step by step.

Times are seconds since 1970, digests are hex, and what is nested is JSON text, the same in every
database. Each index says which question needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "BLOBS",
    "CONTRIBUTIONS",
    "EVENTS",
    "INVITES",
    "LEASE",
    "MEMBERS",
    "METADATA",
    "READERS",
    "ROUNDS",
    "RUNS",
    "STARTS",
    "UPLOADS",
    "tasks_from",
]

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# Ids that are searched by how they start: compared byte by byte, in PostgreSQL too.
_ID = Text().with_variant(Text(collation="C"), "postgresql")


def _number() -> Column[int]:
    """Order of arrival."""
    kind = BigInteger().with_variant(Integer(), "sqlite")
    return Column("id", kind, primary_key=True, autoincrement=True)


LEASE = Table(
    "lease",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one"), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("since", Double, nullable=False),
)

MEMBERS = Table(
    "members",
    METADATA,
    _number(),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("fingerprint", String(64), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("joined", Double, nullable=False),
    # One active key per name, whatever is done at the same time.
    Index(
        "ux_members_active_name",
        "name",
        unique=True,
        sqlite_where=text("status = 'active'"),
        postgresql_where=text("status = 'active'"),
    ),
)

INVITES = Table(
    "invites",
    METADATA,
    _number(),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires", Double, nullable=False),
    Column("used", Double),
    Column("used_by", String(64), nullable=False),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    Column("id", _ID, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("job_hash", String(64), nullable=False),
    Column("spec", Text, nullable=False),
    Column("files", Text, nullable=False),
    Column("sites", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("plan", String(64), nullable=False),
    Column("phase", Text, nullable=False),
    Column("signed", Text, nullable=False, server_default="{}"),
)

READERS = Table(
    "readers",
    METADATA,
    # Also "with whom is this run shared".
    Column("run", _ID, ForeignKey("runs.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("since", Double, nullable=False),
    # "Which runs are shared with this researcher."
    Index(None, "name"),
)

CONTRIBUTIONS = Table(
    "contributions",
    METADATA,
    _number(),
    Column("run", _ID, ForeignKey("runs.id"), nullable=False),
    Column("task", _ID, nullable=False),
    Column("client", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("weight", Double, nullable=False),
    Column("received", Double, nullable=False),
    # The round it went into; empty until then.
    Column("round", BigInteger),
    # Exactly once; also "which answers has this round" (tasks by how their id starts).
    UniqueConstraint("run", "task"),
    # "Which was this site's last committed task."
    Index(None, "run", "client", "round"),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    # Also "which rounds came after this one".
    Column("run", _ID, ForeignKey("runs.id"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("record", Text, nullable=False),
    Column("checkpoint", String(64), nullable=False),
    Column("model_hash", String(64), nullable=False),
    Column("tasks", Text, nullable=False),
)

# Small ones, written with the rows that name them.
BLOBS = Table(
    "blobs",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("raw", LargeBinary, nullable=False),
)

# What each of the latest starts has drawn: a store that was put back from a backup comes to epochs again.
STARTS = Table(
    "starts",
    METADATA,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("start", String(16), nullable=False),
)

# Begun, and nothing refers to them yet: counted, and removed in the end, also after another start.
UPLOADS = Table(
    "uploads",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)

EVENTS = Table(
    "events",
    METADATA,
    _number(),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("at", Double, nullable=False),
    # "What happened in this run."
    Index(None, "run", "id"),
)


def tasks_from(prefix: str) -> Sequence[ColumnElement[bool]]:
    """Answers to tasks whose id starts so, as a range that the index can answer."""
    if not prefix:
        return ()
    behind = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return (CONTRIBUTIONS.c.task >= prefix, CONTRIBUTIONS.c.task < behind)
