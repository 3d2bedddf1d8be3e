"""Alembic's entry: runs the migrations on the connection that adapters/database.py hands over, in its transaction."""

from alembic import context

from server.usage.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
