"""By what later turns of a held-out row's conversation find it when its text is gone."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0003_turns"
down_revision = "dataset_builder_0002_text_hashes"


def upgrade() -> None:
    op.add_column("places", sa.Column("turn", sa.Text, nullable=False, server_default=""))
