"""The tables as the newest migration leaves them."""

import sqlalchemy as sa

REVISION = "0005"
"""The newest migration."""

metadata = sa.MetaData()
LIVE = "state NOT IN ('TERMINATED', 'CANCELLED')"

domains = sa.Table("domains", metadata, sa.Column("name", sa.String(64), primary_key=True))
groups = sa.Table(
    "groups",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("domain", sa.ForeignKey("domains.name"), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.UniqueConstraint("domain", "name"),
)
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("email", sa.String(255), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("domain", sa.ForeignKey("domains.name"), nullable=False),
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
    sa.Column("group_id", sa.ForeignKey("groups.id"), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("image", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("node_id", sa.String(64)),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("status_data", sa.JSON(none_as_null=True)),
    sa.Column("isolation", sa.JSON(none_as_null=True)),
    sa.Column("result", sa.String(16), nullable=False, server_default="UNDEFINED"),
    sa.Column("restarts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("status_changed", sa.Float, nullable=False, server_default="0"),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Index(
        "one_live_name", "access_key", "name", unique=True, sqlite_where=sa.text(LIVE), postgresql_where=sa.text(LIVE)
    ),
    sa.Index("sessions_by_owner", "access_key", "created_at"),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("exit_code", sa.Integer, nullable=False),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("cost", sa.JSON, nullable=False),
    sa.Column("last_seq", sa.Integer, nullable=False),
    sa.Column("accepted_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float, nullable=False),
)
session_dependencies = sa.Table(
    "session_dependencies",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("depends_on", sa.ForeignKey("sessions.id"), primary_key=True, index=True),
)
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id"), nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    # An id is told to receivers, so it is never given out again.
    sqlite_autoincrement=True,
)
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("access_key", sa.ForeignKey("keypairs.access_key"), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("session_id", sa.ForeignKey("sessions.id"), nullable=False),
    sa.Column("created", sa.Boolean, nullable=False),
    sa.Column("at", sa.Float, nullable=False, index=True),
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
images = sa.Table(
    "images",
    metadata,
    sa.Column("reference", sa.String(255), primary_key=True),
    sa.Column("base", sa.String(255), nullable=False),
    sa.Column("architecture", sa.String(32), nullable=False),
    sa.Column("interpreter", sa.JSON, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("requirements", sa.Text, nullable=False),
    sa.Column("lock", sa.Text, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
image_aliases = sa.Table(
    "image_aliases",
    metadata,
    sa.Column("alias", sa.String(255), primary_key=True),
    sa.Column("target", sa.String(255), nullable=False),
)
session_templates = sa.Table(
    "session_templates",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("group_id", sa.ForeignKey("groups.id"), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("template", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # They are kept, since sessions were made of them.
    sa.Column("deleted_at", sa.Float),
)
