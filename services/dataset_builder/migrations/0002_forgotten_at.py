"""When a correction's prediction was made, and until when a person is erased: later events are stored as usual."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0002"
down_revision = "dataset_builder_0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Who asked before this version asked before now.
    op.add_column("forgotten", sa.Column("at", TIME, nullable=False, server_default=sa.text("now()")))
    op.alter_column("forgotten", "at", server_default=None)
    op.add_column("corrections", sa.Column("happened_at", TIME))
    # Found in the JSON as it is written: PostgreSQL decodes none whose texts hold a NUL.
    op.execute("""UPDATE corrections SET happened_at = substring(event from '"occurred_at":"([^"]+)"')::timestamptz""")
    op.alter_column("corrections", "happened_at", nullable=False)


def downgrade() -> None:
    op.drop_column("corrections", "happened_at")
    op.drop_column("forgotten", "at")
