"""Erased people: events of theirs that are read again are left out."""

import sqlalchemy as sa
from alembic import op

revision = "failure_miner_0002"
down_revision = "failure_miner_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("forgotten")
