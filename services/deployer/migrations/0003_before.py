"""What a change found that may not be done yet, so that it can be taken back."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "deployer_0003_before"
down_revision = "deployer_0002_opening_pairs"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("before", JSONB))
