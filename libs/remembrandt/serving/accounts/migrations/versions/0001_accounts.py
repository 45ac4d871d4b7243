"""All tables of the first release."""

from alembic import op

from remembrandt.serving.accounts.tables import Base

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes them."""
    Base.metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Removes them."""
    Base.metadata.drop_all(op.get_bind())
