"""Whose first answer of the day was seen: slow answers are compared between the arms by these alone."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0010_day_subjects"
down_revision = "deployer_0009_answered_arm"


def upgrade() -> None:
    op.create_table(
        "day_subjects",
        sa.Column("rollout_id", sa.Text, primary_key=True),
        sa.Column("user_key", sa.Text, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
    )
