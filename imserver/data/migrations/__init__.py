"""Alembic's migrations of the archive; `Database.migrate` runs them at start."""
