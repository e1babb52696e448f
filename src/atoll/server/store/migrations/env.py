"""Run by Alembic: takes the steps on the connection, and in the transaction, that it is given."""

from __future__ import annotations

from alembic import context

from atoll.server.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
