"""Domains, groups, users, key pairs, sessions and their history."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LIVE = sa.text("state NOT IN ('TERMINATED', 'CANCELLED')")


def upgrade() -> None:
    op.create_table("domains", sa.Column("name", sa.String(64), primary_key=True))
    op.create_table(
        "groups",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("domain", sa.String(64), sa.ForeignKey("domains.name"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.UniqueConstraint("domain", "name"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("email", sa.String(255), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("domain", sa.String(64), sa.ForeignKey("domains.name"), nullable=False),
    )
    op.create_table(
        "keypairs",
        sa.Column("access_key", sa.String(20), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("token_hash", sa.String(64), unique=True),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("access_key", sa.String(20), sa.ForeignKey("keypairs.access_key"), nullable=False),
        sa.Column("group_id", sa.String(36), sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("image", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("node_id", sa.String(64)),
        sa.Column("reason", sa.JSON),
        sa.Column("status_data", sa.JSON),
        sa.Column("isolation", sa.JSON),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("ended_at", sa.Float),
    )
    op.create_index(
        "one_live_name", "sessions", ["access_key", "name"], unique=True, sqlite_where=LIVE, postgresql_where=LIVE
    )
    op.create_index("sessions_by_owner", "sessions", ["access_key", "created_at"])
    op.create_table(
        "session_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("hint", sa.Text),
    )
    op.create_index("ix_session_events_session_id", "session_events", ["session_id"])
