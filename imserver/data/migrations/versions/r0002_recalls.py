"""The index of what is taken back holds recalls alone: no other message has to be put into it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.drop_index("messages_by_target", "messages")
    some = sa.text("target IS NOT NULL")
    op.create_index(
        "messages_by_target", "messages", ["conversation", "target"], sqlite_where=some, postgresql_where=some
    )


def downgrade() -> None:
    op.drop_index("messages_by_target", "messages")
    op.create_index("messages_by_target", "messages", ["conversation", "target"])
