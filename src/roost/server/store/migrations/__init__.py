"""Alembic's scripts, found through the package."""
