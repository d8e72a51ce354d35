"""What outlives a row's text: its hash, and a sketch of all of it where only a part is compared."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0002_text_hashes"
down_revision = "dataset_builder_0001_places"


def upgrade() -> None:
    op.add_column("places", sa.Column("text_hash", sa.Text, nullable=False, server_default=""))
    op.add_column("places", sa.Column("whole", sa.LargeBinary))
