"""Whose signature a run has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; earlier runs have none, and sites take no more part in them."""
    op.add_column("runs", sa.Column("signed", sa.Text, nullable=False, server_default="{}"))
