"""What each start has drawn, and what members have begun to upload."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make both tables: of earlier starts and uploads nothing is known."""
    op.create_table(
        "starts",
        sa.Column("epoch", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("start", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name="pk_starts"),
    )
    op.create_table(
        "uploads",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("owner", "sha256", name="pk_uploads"),
    )
