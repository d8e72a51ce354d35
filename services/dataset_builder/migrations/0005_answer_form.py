"""What a revision allowed in an answer: whether what is no answer today was one then."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0005_answer_form"
down_revision = "dataset_builder_0004_rolled_up"


def upgrade() -> None:
    op.add_column("revisions", sa.Column("answer_form", sa.Text, nullable=False, server_default=""))
