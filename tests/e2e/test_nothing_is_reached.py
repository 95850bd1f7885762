"""Hostile probes run inside a session; each line of the profile has one that succeeds where the line is missing.

The table is that of the threat model: processes, files, kernel surface, network, descriptors.
"""

import json
import os
from pathlib import Path

import pytest

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.runtimes import bubblewrap, seccomp
from roost.runtimes.base import Place
from roost.wire.ids import new_session_id
from roost.wire.runs import EventKind
from roost.wire.sandboxes import SandboxSpec
from tests.agents import run

pytestmark = pytest.mark.skipif(
    not bubblewrap.BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

PRELUDE = """
import ctypes, os, socket, struct, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(a) for a in arguments])
    return 'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'ok'
"""

REFUSED = {
    "the server's data folder is not there": ("attempt(lambda: os.listdir({data!r}))", "ENOENT"),
    "the host's passwords are not there": ("attempt(lambda: open('/etc/shadow'))", "ENOENT"),
    "the host's root folder is not there": ("attempt(lambda: os.listdir('/root'))", "ENOENT"),
    "the keeper's socket is not there": ("attempt(lambda: os.listdir('/run/roost'))", "ENOENT"),
    "the system is read-only": ("attempt(lambda: open('/usr/bin/x', 'w'))", "EROFS"),
    "the root is read-only": ("attempt(lambda: os.mkdir('/x'))", "EROFS"),
    "devices cannot be added": ("attempt(lambda: os.mkdir('/dev/x'))", "EROFS"),
    "the runner is read-only": ("attempt(lambda: open('/opt/roost/runner/x', 'w'))", "EROFS"),
    "kernel settings are read-only": ("attempt(lambda: open('/proc/sys/kernel/core_pattern', 'w'))", "EROFS"),
    "the runner's memory is closed": ("attempt(lambda: open('/proc/1/mem', 'r+b'))", "EACCES"),
    "the runner's descriptors are closed": ("attempt(lambda: os.listdir('/proc/1/fd'))", "EACCES"),
    "the runner's environment is closed": ("attempt(lambda: open('/proc/1/environ').read())", "EACCES"),
    "there is no network": ("attempt(lambda: socket.create_connection(('192.0.2.1', 80), 2))", "ENETUNREACH"),
    "hypervisor sockets are refused": ("attempt(lambda: socket.socket(40, 1))", "EPERM"),
    "kernel crypto sockets are refused": ("attempt(lambda: socket.socket(38, 5))", "EPERM"),
    "packet sockets are refused": ("attempt(lambda: socket.socket(17, 3))", "EPERM"),
    "audit netlink is refused": ("attempt(lambda: socket.socket(16, 3, 9))", "EPERM"),
    "unshare is refused": ("call(272, 0x10000000)", "EPERM"),
    "ptrace is refused": ("call(101, 0, 0, 0, 0)", "EPERM"),
    "bpf is refused": ("call(321, 0, 0, 0)", "EPERM"),
    "perf is refused": ("call(298, 0, 0, -1, -1, 0)", "EPERM"),
    "key rings are refused": ("call(250, 0, 0, 0)", "EPERM"),
    "user faults are refused": ("call(323, 1)", "EPERM"),
    "io_uring is absent": ("call(425, 1, 0)", "ENOSYS"),
    "clone3 is absent": ("call(435, 0, 0)", "ENOSYS"),
    "mount is refused": ("call(165, 0, 0, 0, 0, 0)", "EPERM"),
    "typing into a terminal is refused": ("call(16, 0, 0x5412, 0)", "EPERM"),
}


async def answers(agent: LocalAgent, expressions: list[str]) -> list[str]:
    """What each expression is inside a fresh session."""
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    await agent.launch(spec)
    code = f"{PRELUDE}\nimport json\nprint(json.dumps([{', '.join(expressions)}]))"
    events = await run(agent, spec.session_id, code)
    text = "".join(event.data for event in events if event.kind is EventKind.STDOUT)
    assert text, [event for event in events if event.kind is not EventKind.STDOUT]
    found: list[str] = json.loads(text)
    return found


async def test_every_probe_is_refused(agent: LocalAgent, data_dir: Path) -> None:
    expressions = [probe.format(data=str(data_dir)) for probe, _ in REFUSED.values()]

    found = await answers(agent, expressions)

    assert dict(zip(REFUSED, found, strict=True)) == {name: answer for name, (_, answer) in REFUSED.items()}


async def test_a_session_has_no_capabilities_and_no_way_to_new_privileges(agent: LocalAgent) -> None:
    status = "open('/proc/self/status').read()"

    [text] = await answers(agent, [status])

    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split() == ["1000"] * 4


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives sessions a uid of their own")
async def test_each_session_has_a_uid_of_its_own_that_owns_nothing_of_the_host(agent: LocalAgent) -> None:
    uids = set()
    for _ in range(2):
        spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
        await agent.launch(spec)
        uids.add(Path(f"/proc/{agent._load(spec.session_id).init_pid}").stat().st_uid)
        uids.add((agent._sandboxes / spec.session_id / "home").stat().st_uid)

    # The runner is not dumpable, so its /proc folder belongs to root; the homes tell the uids.
    assert len(uids - {0}) == 2


SYSTEM_CALLS = {name: numbers[0] for name, numbers in {**seccomp.DENIED, **seccomp.ABSENT}.items() if numbers[0]}
HARMLESS = {"unshare": "call(272, 0)", "add_key": "call(248, 0, 0, 0, 0, 0)", "kcmp": "call(312, 0, 0, 0, 0, 0)"}


@pytest.mark.parametrize("name", sorted(HARMLESS))
async def test_without_its_line_in_the_filter_a_call_reaches_the_kernel(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seccomp.filter_program.cache_clear()
    monkeypatch.delitem(seccomp.DENIED, name)

    [found] = await answers(agent, [HARMLESS[name]])

    seccomp.filter_program.cache_clear()
    assert found != "EPERM"


@pytest.mark.parametrize(
    ("line", "probe"),
    [
        (("--ro-bind", "/proc/sys", "/proc/sys"), "'ok' if not os.statvfs('/proc/sys').f_flag & 1 else 'EROFS'"),
        (("--remount-ro", "/"), "attempt(lambda: os.mkdir('/x'))"),
        (("--remount-ro", "/dev"), "attempt(lambda: os.mkdir('/dev/x'))"),
    ],
)
async def test_without_its_line_in_the_profile_a_probe_succeeds(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], probe: str
) -> None:
    whole = bubblewrap.command

    def weakened(spec: SandboxSpec, place: Place) -> list[str]:
        arguments = whole(spec, place)
        at = next(i for i in range(len(arguments)) if tuple(arguments[i : i + len(line)]) == line)
        return arguments[:at] + arguments[at + len(line) :]

    monkeypatch.setattr(bubblewrap, "command", weakened)

    assert await answers(agent, [probe]) == ["ok"]
