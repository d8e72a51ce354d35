"""The time of each pair's prediction, and the people who were forgotten and when."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0002"
down_revision = "deployer_0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("ledger", sa.Column("logged_at", TIME))  # NULL in rows from before this version.
    op.create_index("ledger_by_person", "ledger", ["user_hash"])
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", TIME, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("forgotten")
    op.drop_index("ledger_by_person")
    op.drop_column("ledger", "logged_at")
