"""The table of a cycle's events is named after them."""

from alembic import op

revision = "console_0003"
down_revision = "console_0002"


def upgrade() -> None:
    op.rename_table("facts", "cycle_events")
    op.execute("ALTER INDEX facts_by_cycle RENAME TO cycle_events_by_cycle")
    op.execute("ALTER INDEX facts_by_task RENAME TO cycle_events_by_task")


def downgrade() -> None:
    op.execute("ALTER INDEX cycle_events_by_task RENAME TO facts_by_task")
    op.execute("ALTER INDEX cycle_events_by_cycle RENAME TO facts_by_cycle")
    op.rename_table("cycle_events", "facts")
