"""Users, key pairs, sessions and their history."""

from alembic import op

from roost.server.store.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
