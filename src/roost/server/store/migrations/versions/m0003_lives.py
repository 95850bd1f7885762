"""What batch sessions come to and wait for, when each session came into its state, the outbox of webhooks, and keys."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("result", sa.String(16), nullable=False, server_default="UNDEFINED"))
    op.add_column("sessions", sa.Column("restarts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("sessions", sa.Column("status_changed", sa.Float, nullable=False, server_default="0"))
    op.create_table(
        "session_dependencies",
        sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), primary_key=True),
        sa.Column("depends_on", sa.String(36), sa.ForeignKey("sessions.id"), primary_key=True),
    )
    op.create_index("ix_session_dependencies_depends_on", "session_dependencies", ["depends_on"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhook_deliveries_session_id", "webhook_deliveries", ["session_id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("access_key", sa.String(20), sa.ForeignKey("keypairs.access_key"), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("created", sa.Boolean, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("ix_idempotency_keys_at", "idempotency_keys", ["at"])
    op.execute("UPDATE sessions SET status_changed = COALESCE(ended_at, started_at, created_at)")
