"""Control groups, version 1, version 2 and both at once: one group for a whole sandbox.

Which hierarchy offers a controller is looked up per controller, since a mounted version 2 proves nothing on hybrid
hosts, which have version 1 and an extra, empty version 2 tree.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from roost.wire.sandboxes import Limits, SandboxStats

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")


class Hierarchies(msgspec.Struct, frozen=True, kw_only=True):
    """Folders below which this process may make groups."""

    v1: dict[str, Path] = {}
    """Controller → our own group in its hierarchy."""
    v2: Path | None = None
    """Our own group in the unified hierarchy, where it offers every controller that we need."""

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(CONTROLLERS) if self.v2 is not None else frozenset(self.v1)


def find_hierarchies(mountinfo: str, own_cgroups: str) -> Hierarchies:
    """Read where groups can be made from `/proc/self/mountinfo` and `/proc/self/cgroup`."""
    own = _own_groups(own_cgroups)
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            v2 = mount_point / own.get("", "/").lstrip("/")
        elif kind == "cgroup":
            for controller in options.split()[-1].split(","):
                if controller in CONTROLLERS:
                    v1[controller] = mount_point / own.get(controller, "/").lstrip("/")
    if v2 is not None and _offers(v2) >= {"cpu", "memory", "pids"}:
        return Hierarchies(v2=v2 if os.access(v2, os.W_OK) else None)
    return Hierarchies(v1={name: path for name, path in v1.items() if os.access(path, os.W_OK)})


def _own_groups(text: str) -> dict[str, str]:
    groups = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _offers(group: Path) -> set[str]:
    try:
        return set((group / "cgroup.subtree_control").read_text().split())
    except OSError:
        return set()


def here() -> Hierarchies:
    """The hierarchies of this process."""
    return find_hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())


class SandboxGroup:
    """The group, or the set of version 1 groups, of one sandbox."""

    def __init__(self, hierarchies: Hierarchies, name: str) -> None:
        if hierarchies.v2 is not None:
            self.folders = {controller: hierarchies.v2 / name for controller in CONTROLLERS}
        else:
            self.folders = {controller: parent / name for controller, parent in hierarchies.v1.items()}
        self._v2 = hierarchies.v2 is not None

    @property
    def procs_files(self) -> tuple[str, ...]:
        return tuple(sorted({str(folder / "cgroup.procs") for folder in self.folders.values()}))

    def create(self, limits: Limits) -> None:
        """Make the groups and set every limit. Making them again changes nothing."""
        for folder in self.folders.values():
            folder.mkdir(exist_ok=True)
        for path, value in self._settings(limits):
            path.write_text(value)

    def _settings(self, limits: Limits) -> list[tuple[Path, str]]:
        period = 100_000
        quota = str(max(1000, int(limits.cpu * period)))
        settings = []
        if "memory" in self.folders:
            memory = self.folders["memory"]
            if self._v2:
                settings += [
                    (memory / "memory.max", str(limits.mem_bytes)),
                    (memory / "memory.oom.group", "0"),
                ]
                if (memory / "memory.swap.max").exists():
                    settings.append((memory / "memory.swap.max", "0"))
            else:
                settings.append((memory / "memory.limit_in_bytes", str(limits.mem_bytes)))
                if (memory / "memory.memsw.limit_in_bytes").exists():
                    settings.append((memory / "memory.memsw.limit_in_bytes", str(limits.mem_bytes)))
        if "pids" in self.folders:
            settings.append((self.folders["pids"] / "pids.max", str(limits.pids)))
        if "cpu" in self.folders:
            cpu = self.folders["cpu"]
            if self._v2:
                settings.append((cpu / "cpu.max", f"{quota} {period}"))
            else:
                settings += [(cpu / "cpu.cfs_period_us", str(period)), (cpu / "cpu.cfs_quota_us", quota)]
        return settings

    def pids(self) -> list[int]:
        """Every process in it now."""
        found: set[int] = set()
        for name in self.procs_files:
            try:
                found.update(int(pid) for pid in Path(name).read_text().split())
            except FileNotFoundError:
                continue
        return sorted(found)

    def remove(self) -> None:
        """Remove the empty groups; those that are gone are fine.

        Raises:
            OSError: a process is still inside.
        """
        for folder in set(self.folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue

    def watch_memory(self) -> "MemoryWatch":
        """What is asked of it again and again; close it."""
        memory = self.folders.get("memory")
        return MemoryWatch(memory / self._peak_file, memory / self._events_file) if memory else MemoryWatch(None, None)

    @property
    def _peak_file(self) -> str:
        return "memory.peak" if self._v2 else "memory.max_usage_in_bytes"

    @property
    def _events_file(self) -> str:
        return "memory.events" if self._v2 else "memory.oom_control"

    def stats(self) -> SandboxStats:
        """The counters now."""
        memory = self.folders.get("memory")
        current = "memory.current" if self._v2 else "memory.usage_in_bytes"
        return SandboxStats(
            cpu_s=self._cpu_s(),
            mem_bytes=_number(memory / current) if memory else None,
            mem_peak_bytes=_number(memory / self._peak_file) if memory else None,
            pids=_number(self.folders["pids"] / "pids.current") if "pids" in self.folders else None,
        )

    def _cpu_s(self) -> float | None:
        if self._v2:
            usec = _keyed(self.folders["cpu"] / "cpu.stat").get("usage_usec")
            return None if usec is None else usec / 1e6
        if "cpuacct" not in self.folders:
            return None
        nanoseconds = _number(self.folders["cpuacct"] / "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9


class MemoryWatch:
    """The memory counters of one sandbox, which the end of every run asks for: their files stay open."""

    def __init__(self, peak: Path | None, events: Path | None) -> None:
        self._peak = _opened(peak)
        self._events = _opened(events)

    def close(self) -> None:
        for descriptor in (self._peak, self._events):
            if descriptor is not None:
                os.close(descriptor)
        self._peak = self._events = None

    def peak_bytes(self) -> int:
        """The most memory that was in use at once; 0 where nobody counts."""
        try:
            return int(os.pread(self._peak, _SMALL, 0)) if self._peak is not None else 0
        except (OSError, ValueError):  # the group is gone
            return 0

    def oom_kills(self) -> int:
        """How often the kernel has killed something in it for its memory limit."""
        try:
            text = os.pread(self._events, _SMALL, 0) if self._events is not None else b""
        except OSError:
            return 0
        return _counts(text).get("oom_kill", 0)


_SMALL = 4096


def _opened(path: Path | None) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path is not None else None
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None


def _keyed(path: Path) -> dict[str, int]:
    try:
        return _counts(path.read_bytes())
    except OSError:
        return {}


def _counts(text: bytes) -> dict[str, int]:
    try:
        return {key: int(value) for key, value in (line.split() for line in text.decode().splitlines())}
    except ValueError:
        return {}
