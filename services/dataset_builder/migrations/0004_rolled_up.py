"""When each hour of traffic was counted, so that an older count that is read again does not replace it."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0004_rolled_up"
down_revision = "dataset_builder_0003_turns"


def upgrade() -> None:
    # Of what is stored it is not known: the next count of the hour is taken for newer.
    op.add_column(
        "traffic",
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False, server_default="1970-01-01T00:00:00Z"),
    )
