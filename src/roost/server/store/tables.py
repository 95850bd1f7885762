"""Tables as migration 0001 makes them."""

import sqlalchemy as sa

metadata = sa.MetaData()
LIVE = "state NOT IN ('TERMINATED', 'CANCELLED')"

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("email", sa.String(255), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("domain", sa.String(64), nullable=False, server_default="default"),
    sa.Column("group_name", sa.String(64), nullable=False, server_default="default"),
)
keypairs = sa.Table(
    "keypairs",
    metadata,
    sa.Column("access_key", sa.String(20), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("token_hash", sa.String(64), unique=True),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
)
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("access_key", sa.ForeignKey("keypairs.access_key"), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("image", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("node_id", sa.String(64)),
    sa.Column("status_info", sa.Text),
    sa.Column("status_data", sa.JSON),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Index(
        "one_live_name", "access_key", "name", unique=True, sqlite_where=sa.text(LIVE), postgresql_where=sa.text(LIVE)
    ),
)
session_events = sa.Table(
    "session_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("code", sa.String(64), nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("hint", sa.Text),
)
