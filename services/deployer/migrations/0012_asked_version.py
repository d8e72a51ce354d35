"""Which change of a candidate asked for its evaluation: an answer or a failure is told by it, whatever came between."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0012_asked_version"
down_revision = "deployer_0011_replays_ended"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("asked_version", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE rollouts SET asked_version = version WHERE stage = 'queued' AND asked_against <> ''")
