"""Who wrote what a question shows as a user's word, where that is not its own user: it is erased by that."""

import json

import sqlalchemy as sa
from alembic import op

revision = "console_0002_suggested_by"
down_revision = "console_0001_edits"


def upgrade() -> None:
    op.add_column("requests", sa.Column("suggested_by", sa.Text))
    _fill()
    op.create_index(
        "requests_by_suggester", "requests", ["task", "suggested_by"],
        postgresql_where=sa.text("suggested_by IS NOT NULL"),
    )  # fmt: skip


def _fill() -> None:
    """Fill the column of stored questions. PostgreSQL cannot read fields of JSON in which any text has a NUL."""
    connection = op.get_bind()
    columns = (sa.column("request_id"), sa.column("request"), sa.column("suggested_by"))
    requests = sa.table("requests", *columns)
    naming = sa.select(requests.c.request_id, requests.c.request).where(requests.c.request.contains('"suggested_by":"'))
    found = [(row.request_id, json.loads(row.request).get("suggested_by")) for row in connection.execute(naming)]
    for request_id, author in found:
        question = sa.update(requests).where(requests.c.request_id == request_id)
        connection.execute(question.values(suggested_by=author))
