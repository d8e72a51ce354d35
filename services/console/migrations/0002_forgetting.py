"""Adds to questions what erasure, withdrawal and the choice of reviewers filter by."""

import sqlalchemy as sa
from alembic import op

revision = "console_0002"
down_revision = "console_0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def _field(name: str) -> str:
    """Return SQL for a text field of the event, found by pattern: PostgreSQL decodes no JSON with a NUL character."""
    return rf"""substring(request from '"{name}":("(?:[^"\\]|\\.)*")')::json #>> '{{}}'"""


def upgrade() -> None:
    op.add_column("requests", sa.Column("prediction_id", sa.Text))
    op.add_column("requests", sa.Column("cycle_id", sa.Text))
    op.add_column("requests", sa.Column("happened_at", TIME))
    op.add_column("requests", sa.Column("asked_at", TIME))
    op.execute(f"""
        UPDATE requests SET
            prediction_id = {_field("prediction_id")},
            cycle_id = {_field("cycle_id")},
            happened_at = ({_field("occurred_at")})::timestamptz,
            asked_at = ({_field("occurred_at")})::timestamptz
    """)  # noqa: S608 - it contains no user input
    for column in ("prediction_id", "happened_at", "asked_at"):
        op.alter_column("requests", column, nullable=False)
    op.create_index("requests_by_prediction", "requests", ["prediction_id"])
    op.create_index(
        "open_tickets_by_cycle", "requests", ["cycle_id"],
        postgresql_where=sa.text("needed > 0 AND purpose = 'discordant_pair'"),
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("open_tickets_by_cycle")
    op.drop_index("requests_by_prediction")
    for column in ("asked_at", "happened_at", "cycle_id", "prediction_id"):
        op.drop_column("requests", column)
