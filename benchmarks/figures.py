"""Samples, and the lines of the table."""

import contextlib
import statistics
import time
from collections.abc import Iterator


class Samples:
    """What was measured of one figure, in seconds or MiB."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


@contextlib.contextmanager
def timed(results: dict[str, Samples], name: str) -> Iterator[None]:
    """Add how long the block took, unless it fails."""
    started = time.perf_counter()
    yield
    results.setdefault(name, Samples()).add(time.perf_counter() - started)


def contention() -> float:
    """How much longer than its CPU time a loop takes: how busy others keep this machine."""
    wall, spent = time.perf_counter(), time.process_time()
    sum(range(1_000_000))
    return (time.perf_counter() - wall) / (time.process_time() - spent)


_LINE = "{:<30} {:>5} {:>12} {:>12} {:>6} {:>12} {:>8}  {}"


def header() -> str:
    return _LINE.format("figure", "n", "roost", "p99", "n", "Jupyter", "ratio", "target")


def row(name: str, ours: Samples | None, peers: Samples | None, unit: str, target: float | None) -> str:
    """One line: medians, our p99, and how many times smaller ours is."""
    scale = 1000 if unit == "ms" else 1

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value * scale:.2f} {unit}"

    met = ""
    if target is not None:
        met = f"<= {target:g} {unit}"
        if ours is not None:
            met += ", met" if ours.median * scale <= target else ", missed"
    return _LINE.format(
        name,
        len(ours.values) if ours else 0,
        shown(ours.median if ours else None),
        shown(ours.p99 if ours else None),
        len(peers.values) if peers else 0,
        shown(peers.median if peers else None),
        f"{peers.median / ours.median:.1f}" if ours and peers else "-",
        met,
    ).rstrip()
