"""How far the erasures were read: a database that is restored reads those that it lacks again."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0008_offsets"
down_revision = "deployer_0007_log_entry"


def upgrade() -> None:
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table("broker_incarnation", sa.Column("incarnation", sa.Text, primary_key=True))
