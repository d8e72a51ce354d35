"""Whether the replays after a promotion have ended: from then on shadow's flag belongs to the operator."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0011_replays_ended"
down_revision = "deployer_0010_day_subjects"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("replays_ended", sa.Boolean, nullable=False, server_default=sa.false()))
