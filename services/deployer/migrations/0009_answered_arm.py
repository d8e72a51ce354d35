"""Which arm gave an answer of the sample: after a promotion the control's are in it, too."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0009_answered_arm"
down_revision = "deployer_0008_offsets"


def upgrade() -> None:
    op.add_column("canary_answers", sa.Column("canary", sa.Boolean, nullable=False, server_default=sa.true()))
