"""How Alembic runs here: on the connection, and in the transaction, that it is given."""

from alembic import context

from imserver.data.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
