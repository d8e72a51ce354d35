"""Until when a person is erased: later events are stored as usual."""

import sqlalchemy as sa
from alembic import op

revision = "failure_miner_0003"
down_revision = "failure_miner_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Who asked before this version asked before now.
    op.add_column(
        "forgotten", sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()"))
    )
    op.alter_column("forgotten", "at", server_default=None)


def downgrade() -> None:
    op.drop_column("forgotten", "at")
