"""Run by Alembic, on the connection that `migrate.py` opened."""

from alembic import context
from sqlalchemy import text

from fedsvc.archive.tables import metadata

#: any number that nobody else uses as an advisory lock in this database
LOCK = 7_203_116_502_184_471

connection = context.config.attributes["connection"]
# All steps are one transaction, also on SQLite, of which Alembic does not expect it.
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
)
with context.begin_transaction():
    # Several processes may migrate at once, as when all of a deployment starts: they wait for each other.
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    context.run_migrations()
