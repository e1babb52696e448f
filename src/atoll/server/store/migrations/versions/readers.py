"""With whom a run is shared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table; no run is shared yet."""
    op.create_table(
        "readers",
        sa.Column("run", _ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "name", name="pk_readers"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_readers_run"),
    )
    op.create_index("ix_readers_name", "readers", ["name"])
