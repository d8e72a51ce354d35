"""When a person gave a suspect's label."""

import sqlalchemy as sa
from alembic import op

revision = "failure_miner_0002_label_at"
down_revision = "failure_miner_0001_drawn"


def upgrade() -> None:
    op.add_column("suspects", sa.Column("label_at", sa.DateTime(timezone=True)))
