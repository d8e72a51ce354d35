"""Whose requests are being replayed: one subject's are not replayed side by side by several processes."""

import sqlalchemy as sa
from alembic import op

revision = "shadow_0003_subjects"
down_revision = "shadow_0002_forgotten"


def upgrade() -> None:
    op.add_column("decisions", sa.Column("subject", sa.Text))
