"""Samples, and the lines of the table."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

MB = 1_000_000


class Samples:
    """What was measured of one figure, in seconds, MiB, MB/s or sessions a second."""

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

    @property
    def least(self) -> float:
        return min(self.values)


Results = dict[str, Samples]
"""By name; what a peer did has its name in front: `peer: 1+1`."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        name: where its samples are in the results.
        unit: `ms` of samples in seconds, else that of the samples.
        target: how little it may be; of a rate, how much it has to be.
        peer: who does the same; its samples are at `{peer}: {name}`.
        is_rate: whether more is better.
        least_ratio: how many times the peer's rate ours has to be, where that is the target.
    """

    name: str
    unit: str
    target: float | None = None
    peer: str = "Jupyter"
    is_rate: bool = False
    least_ratio: float | None = None


@contextlib.contextmanager
def timed(results: Results, name: str) -> Iterator[None]:
    """Add how long the block took, unless it fails."""
    started = time.perf_counter()
    yield
    add(results, name, time.perf_counter() - started)


@contextlib.contextmanager
def moving(results: Results, name: str, size: int) -> Iterator[None]:
    """Add how many MB/s the block moved, unless it fails.

    Args:
        size: how much it moves, in bytes.
    """
    started = time.perf_counter()
    yield
    add(results, name, size / MB / (time.perf_counter() - started))


def add(results: Results, name: str, value: float | None) -> None:
    """Add what could be measured."""
    if value is not None:
        results.setdefault(name, Samples()).add(value)


def contention() -> float:
    """How much longer than its CPU time a loop takes: how busy others keep this machine."""
    wall, spent = time.perf_counter(), time.process_time()
    sum(range(1_000_000))
    return (time.perf_counter() - wall) / (time.process_time() - spent)


_LINE = "{:<34} {:>5} {:>13} {:>13} {:>6} {:>13} {:<8} {:>7}  {}"


def header() -> str:
    return _LINE.format("figure", "n", "roost", "p99 or least", "n", "peer", "", "ratio", "target")


def row(figure: Figure, results: Results) -> str:
    """One line: medians, our worst, and how many times better ours is."""
    ours, peers = results.get(figure.name), results.get(f"{figure.peer}: {figure.name}")
    ratio = _ratio(figure, ours, peers)
    return _LINE.format(
        figure.name,
        len(ours.values) if ours else 0,
        _shown(figure, ours.median if ours else None),
        _shown(figure, (ours.least if figure.is_rate else ours.p99) if ours else None),
        len(peers.values) if peers else 0,
        _shown(figure, peers.median if peers else None),
        figure.peer if peers else "",
        f"{ratio:.2f}" if ratio is not None else "-",
        _verdict(figure, ours, ratio),
    ).rstrip()


def _ratio(figure: Figure, ours: Samples | None, peers: Samples | None) -> float | None:
    if ours is None or peers is None:
        return None
    return ours.median / peers.median if figure.is_rate else peers.median / ours.median


def _shown(figure: Figure, value: float | None) -> str:
    scale = 1000 if figure.unit == "ms" else 1
    return "-" if value is None else f"{value * scale:.2f} {figure.unit}"


def _verdict(figure: Figure, ours: Samples | None, ratio: float | None) -> str:
    if figure.least_ratio is not None:
        met = None if ratio is None else ratio >= figure.least_ratio
        return _said(f"ratio >= {figure.least_ratio:g}", met)
    if figure.target is None:
        return ""
    if figure.is_rate:
        met = None if ours is None else ours.median >= figure.target
        return _said(f">= {figure.target:g} {figure.unit}", met)
    scale = 1000 if figure.unit == "ms" else 1
    met = None if ours is None else ours.median * scale <= figure.target
    return _said(f"<= {figure.target:g} {figure.unit}", met)


def _said(target: str, met: bool | None) -> str:
    return target if met is None else f"{target}, {'met' if met else 'missed'}"
