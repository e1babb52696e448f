"""First shape: lease, members, invites, runs, contributions, rounds, small blobs, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def upgrade() -> None:
    """Make all tables, and the lease's one row."""
    _people()
    _work()
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_blobs"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Numbers of a model do not get smaller by compression; trying takes longer than writing them.
        op.execute("ALTER TABLE blobs ALTER COLUMN raw SET STORAGE EXTERNAL")
    op.create_table(
        "events",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        *_text("kind", "text", "run", "site"),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_run_id", "events", ["run", "id"])


def _people() -> None:
    lease = op.create_table(
        "lease",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        *_text("holder"),
        sa.Column("since", sa.Double, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_lease_one"),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
    )
    op.bulk_insert(lease, [{"id": 1, "epoch": 0, "holder": "", "since": 0.0}])
    op.create_table(
        "members",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        *_text("name"),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("joined", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_members"),
        sa.UniqueConstraint("fingerprint", name="uq_members_fingerprint"),
    )
    active = sa.text("status = 'active'")
    op.create_index(
        "ux_members_active_name",
        "members",
        ["name"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_table(
        "invites",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        *_text("name"),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.Column("used", sa.Double),
        sa.Column("used_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invites"),
        sa.UniqueConstraint("secret_hash", name="uq_invites_secret_hash"),
    )


def _work() -> None:
    op.create_table(
        "runs",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", _ID, nullable=False),
        *_text("name"),
        sa.Column("job_hash", sa.String(64), nullable=False),
        *_text("spec", "files", "sites", "by"),
        sa.Column("created", sa.Double, nullable=False),
        *_text("status", "reason"),
        sa.Column("plan", sa.String(64), nullable=False),
        *_text("phase"),
        sa.PrimaryKeyConstraint("number", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
    )
    op.create_table(
        "contributions",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("run", _ID, nullable=False),
        sa.Column("task", _ID, nullable=False),
        *_text("client"),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("round", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_contributions"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_contributions_run"),
        sa.UniqueConstraint("run", "task", name="uq_contributions_run_task"),
    )
    op.create_index(
        "ix_contributions_run_client_round", "contributions", ["run", "client", "round"]
    )
    op.create_table(
        "rounds",
        sa.Column("run", _ID, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        *_text("record"),
        sa.Column("checkpoint", sa.String(64), nullable=False),
        sa.Column("model_hash", sa.String(64), nullable=False),
        *_text("tasks"),
        sa.PrimaryKeyConstraint("run", "number", name="pk_rounds"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_rounds_run"),
    )
