"""The broker incarnation that the stored offsets belong to."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0003"
down_revision = "dataset_builder_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("broker", sa.Column("incarnation", sa.Text, primary_key=True))


def downgrade() -> None:
    op.drop_table("broker")
