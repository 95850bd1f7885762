"""What a session used (spec/cli.md §5)."""

from collections.abc import Mapping
from typing import Any

from roost.cli.output import print_items


def print_stats(stats: Mapping[str, Any]) -> None:
    """Print the statistics of a session as a table."""
    print_items(stats_rows(stats), {"key": "key", "value": "value", "unit": "unit"})


def stats_rows(stats: Mapping[str, Any]) -> list[dict[str, str]]:
    """Key, value and unit of each figure: the maximum where it is known, bytes as people write them."""
    rows = []
    for key, metric in stats.items():
        if not isinstance(metric, Mapping):
            continue
        value, unit = metric.get("stats.max") or metric.get("current"), str(metric.get("unit_hint") or "")
        if unit == "bytes":
            value, unit = human_size(int(float(str(value)))), ""
        rows.append({"key": key, "value": str(value), "unit": unit})
    return rows


def human_size(size: int) -> str:
    """Bytes as people write them, in powers of 1024."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
