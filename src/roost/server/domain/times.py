"""Instants as the API writes them."""

from datetime import UTC, datetime


def iso(at: float) -> str:
    """Unix time as ISO 8601 in UTC, always with microseconds: `2026-01-05T04:10:11.123456+00:00`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
