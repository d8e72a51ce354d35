"""At which share of users a candidate's guards count."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0003_counted_share"
down_revision = "deployer_0002_opening_pairs"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("counted_percent", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE rollouts SET counted_percent = canary_percent")
