"""Which pair of a subject is its first of all. Tests that began before have none, and do not ask for it."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0002_opening_pairs"
down_revision = "deployer_0001_fresh"


def upgrade() -> None:
    op.add_column("ledger", sa.Column("opens", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("one_opening_a_user", "ledger", ["rollout_id", "user_key", "fresh"], unique=True,
                    postgresql_where=sa.text("opens"))  # fmt: skip
