"""The verdicts that a candidate stood on before it was evaluated again."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0006_former_verdicts"
down_revision = "deployer_0005_other_base"


def upgrade() -> None:
    verdicts = sa.Column("former_verdicts", sa.ARRAY(sa.Text), nullable=False, server_default="{}")
    op.add_column("rollouts", verdicts)
