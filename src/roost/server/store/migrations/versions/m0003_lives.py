"""What batch sessions come to, what they wait for, and when each session came into its state."""

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
    op.execute("UPDATE sessions SET status_changed = COALESCE(ended_at, started_at, created_at)")
