"""At which share of users a candidate's guards count, and since when, and the share at which each answer was given."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0004_counted_share"
down_revision = "deployer_0003_before"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("counted_percent", sa.Integer))
    op.add_column("rollouts", sa.Column("counted_since", sa.DateTime(timezone=True)))
    op.execute("UPDATE rollouts SET counted_percent = canary_percent")
    op.add_column("canary_answers", sa.Column("percent", sa.Integer))
    op.execute(
        "UPDATE canary_answers SET percent = rollouts.canary_percent FROM rollouts "
        "WHERE rollouts.rollout_id = canary_answers.rollout_id"
    )
