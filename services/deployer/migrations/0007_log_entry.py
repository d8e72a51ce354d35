"""Where Unleash's log was before the flags of a rollout's last change were set."""

import sqlalchemy as sa
from alembic import op

revision = "deployer_0007_log_entry"
down_revision = "deployer_0006_former_verdicts"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("log_entry", sa.BigInteger))
