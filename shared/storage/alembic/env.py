"""Alembic's environment for every service: the connection is handed in by `shared.storage.migration.migrate`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema=context.config.attributes["schema"],
)
context.run_migrations()
