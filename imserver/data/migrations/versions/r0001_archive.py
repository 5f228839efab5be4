"""The archive: conversations, messages, and how far each user has read."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("shop", sa.String(64), nullable=False),
        sa.Column("customer", sa.String(128), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("conversation", sa.String(64)),
        sa.Column("seq", sa.BigInteger),
        sa.Column("sender", sa.String(128), nullable=False),
        sa.Column("receiver", sa.String(128), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("ts", sa.BigInteger, nullable=False),
        sa.Column("target", sa.BigInteger),
    )
    op.create_index("messages_by_seq", "messages", ["conversation", "seq"], unique=True)
    op.create_index("messages_by_target", "messages", ["conversation", "target"])
    op.create_table(
        "reads",
        sa.Column("conversation", sa.String(64), primary_key=True),
        sa.Column("uid", sa.String(128), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("reads")
    op.drop_table("messages")
    op.drop_table("conversations")
