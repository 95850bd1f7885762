"""Memory of processes, as Linux counts it."""

from pathlib import Path

import psutil

MIB = 1 << 20


def rss(pid: int) -> int:
    """Resident bytes of one process."""
    resident: int = psutil.Process(pid).memory_info().rss
    return resident


def in_mib(size: int | None) -> float | None:
    """Bytes as MiB, where they are known."""
    return None if size is None else size / MIB


def pss_of_tree(pid: int, *, alone: bool = False) -> int | None:
    """Bytes of a process and all below it, pages that several share divided among them.

    None where one of them may not be looked into: only root may look into a sandbox's runner.
    """
    process = psutil.Process(pid)
    total = 0
    for one in [process] if alone else [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        except PermissionError:
            return None
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total
