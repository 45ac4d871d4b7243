"""What Alembic runs; `Accounts.migrate` hands in the connection."""

from alembic import context

from remembrandt.serving.accounts.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
