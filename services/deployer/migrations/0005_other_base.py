"""Which adapter of another base model a candidate found as the primary."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0005_other_base"
down_revision = "deployer_0004_counted_share"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("resets", sa.Text))
