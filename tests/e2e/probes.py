"""Hostile probes: what each does inside a session, and the least of the profile without which it succeeds.

Run as a program, `probes.py` puts every probe to the sandboxes of the user that it runs as, and prints what it found.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import structlog

from roost.agent.interpreters import find_interpreters
from roost.agent.launcher import Launcher
from roost.agent.layout import run_dir
from roost.agent.sandbox_file import SandboxFile
from roost.agent.sandboxes import Sandboxes
from roost.agent.supervisor import LocalAgent
from roost.agent.sweep import start_time
from roost.runtimes import seccomp
from roost.runtimes.base import Place, Runtime, SandboxHandle
from roost.runtimes.bubblewrap import TMP_BYTES, BubblewrapRuntime, Profile, whole_profile
from roost.runtimes.cgroups import SandboxGroup
from roost.runtimes.keeper import KeeperClient
from roost.wire.errors import AgentError
from roost.wire.ids import new_session_id
from roost.wire.sandboxes import SandboxSpec
from tests.agents import end, output, run

# What can be left out. Lines of the profile and groups of the filter go by their own names; `Weak` knows the others,
# which loosen a line that a session cannot start without, or something that is not bubblewrap's.
OWN_UID = "own uid"
NOTHING_OF_THE_HOST = "nothing of the host"
READ_ONLY_SYSTEM, READ_ONLY_RUNNER = "read-only system", "read-only runner"
READ_ONLY_PACKAGES = "read-only packages"
PACKAGES = "0" * 64
"""The digest of an environment that everybody who owns it may write to."""
NO_LAUNCH_ENVIRONMENT = "no launch environment"
CLOSED_MEMORY, CLOSED_DESCRIPTORS = "closed memory of the runner", "closed descriptors of the runner"
PEER_CHECK = "the agent talks to pid 1 alone"
DIED = "the session died"
NO_NESTING = "no nested user namespaces"
IGNORED_SIGNALS = "signals that the runner ignores"
PID_1 = ("runner is pid 1", PEER_CHECK)
# Any of the three takes the capabilities that the kernel asks for.
REAL_ROOT = (OWN_UID, "own user namespace", "no capabilities")


@dataclass(frozen=True)
class Probe:
    name: str
    code: str
    """An expression. It refuses by OSError, False or a text; whatever else it gives means that the deed was done."""
    refused: str
    """The answer under the whole profile."""
    without: tuple[str, ...]
    """The least that must be left out; for an ordinary user the same, less what such a node does not have."""
    done: str = "ok"
    """The answer of a successful deed."""
    only_root: str = ""
    """Why it cannot be shown to an ordinary user that the line matters."""
    never: str = ""
    """Why it cannot be shown on this host."""
    outside: bool = False
    """Whether the deed depends on the kernel: where it fails without any sandbox, nothing can be shown."""

    def least(self, *, root: bool, outside: str | None) -> frozenset[str]:
        """What must be left out by this user, on a kernel that gives this answer outside a session."""
        if self.is_missing(outside):
            return frozenset(self.without[-1:])
        return frozenset(self.without) if root else frozenset(self.without) - {OWN_UID}

    def answer(self, outside: str | None) -> str:
        """What a successful deed answers. A kernel without the call says so, and no privilege is needed to hear it."""
        return "ENOSYS" if self.is_missing(outside) else self.done

    def is_missing(self, outside: str | None) -> bool:
        return outside == "ENOSYS" and self.refused == "EPERM"

    def not_shown(self, *, root: bool, outside: str | None) -> str:
        """Why it cannot be shown here that the lines matter; empty where it can."""
        if self.is_missing(outside):
            return ""
        if self.never or (self.only_root and not root):
            return self.never or self.only_root
        if self.outside and outside != self.done:
            return f"outside a session this kernel answers {outside} as well"
        return ""


PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, signal, socket, struct, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
RUNNER = os.getppid()
NEWNS, NEWUSER, NEWNET = 0x00020000, 0x10000000, 0x40000000

def call(name, *arguments):
    number = NUMBERS[name] if isinstance(name, str) else name
    values = [a if isinstance(a, (bytes, ctypes._Pointer)) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def reaches(name, *arguments, refusal=errno.EPERM):
    '''Have the kernel itself answer, be it that the arguments are wrong.'''
    try:
        call(name, *arguments)
    except OSError as error:
        if error.errno in (refusal, errno.ENOSYS):
            raise

def nested(flags, work):
    '''With every capability over fresh namespaces of one's own.'''
    call('unshare', NEWUSER | flags)
    return work()

def clone(name, *arguments):
    if call(name, *arguments) == 0:
        os._exit(0)

def connect(family, address):
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)

def fill(folder):
    with open(folder + '/full', 'wb') as file:
        os.posix_fallocate(file.fileno(), 0, TMP_BYTES + (1 << 20))

def type_into_own_terminal():
    _, terminal = os.openpty()
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    fcntl.ioctl(terminal, 0x5412, b'x')

def trace_by_the_32_bit_table():
    '''int 0x80 with 26, which is ptrace in that table and msync in ours; 0 is PTRACE_TRACEME.'''
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex('53 b81a000000 31db 31c9 31d2 31f6 cd80 5b c3'))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() != 0:
        raise OSError(errno.EPERM, 'ptrace')

def a_descriptor_listens():
    for number in map(int, os.listdir('/proc/self/fd')):
        try:
            with socket.socket(fileno=os.dup(number)) as ours:
                if ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return True
        except OSError:
            pass
    return False

def in_child(work):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
            answer = answer if isinstance(answer, str) else 'no' if answer is False else 'ok'
        except OSError as error:
            answer = errno.errorcode[error.errno]
        except BaseException as error:
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as file:
        answer = file.read().decode()
    status = os.waitpid(pid, 0)[1]
    return answer or signal.Signals(os.WTERMSIG(status)).name
"""


def _profile_probes() -> Iterator[Probe]:
    # What lies on the host is not there, and belongs to another uid.
    host = (NOTHING_OF_THE_HOST, OWN_UID)
    yield Probe("another session's home", "os.listdir(at(VICTIM_HOME))", "ENOENT", host)
    yield Probe(
        "another session's record",
        "len(open(at(VICTIM_HOME.replace('/home', '/sandbox.json'))).read())",
        "ENOENT",
        host,
    )
    yield Probe("admin.json", "len(open(at(DATA + '/admin.json')).read())", "ENOENT", host)
    yield Probe("the database", "len(open(at(DATA + '/roost.db')).read())", "ENOENT", host)
    yield Probe("the run logs", "len(os.listdir(at(DATA + '/logs')))", "ENOENT", host)
    yield Probe("the keeper", "connect(socket.AF_UNIX, at(RUN + '/keeper.sock'))", "ENOENT", host)
    yield Probe("another session's runner", "connect(socket.AF_UNIX, at(VICTIM_SOCKET))", "ENOENT", host)
    yield Probe("the host's root folder", "len(os.listdir(at('/sys')))", "ENOENT", (NOTHING_OF_THE_HOST,))
    yield Probe(
        "the host's passwords",
        "len(open(at('/etc/shadow')).read())",
        "ENOENT",
        host,
        only_root="the host's own permissions hide them from an ordinary user",
    )
    permissions = "the system belongs to the host's root, so its permissions hold by themselves"
    yield Probe(
        "writing to the system",
        "os.access('/usr/bin', os.W_OK)",
        "no",
        (READ_ONLY_SYSTEM, OWN_UID),
        only_root=permissions,
    )
    yield Probe(
        "being the owner of the system",
        "os.stat('/usr').st_uid == os.getuid()",
        "no",
        (OWN_UID,),
        only_root=permissions,
    )
    yield Probe(
        "writing a kernel setting",
        "os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))",
        "EACCES",
        ("read-only kernel settings", OWN_UID),
        only_root="kernel settings belong to the host's root, so their permissions hold by themselves",
    )
    yield Probe(
        "a writable view of the kernel settings",
        "os.statvfs('/proc/sys').f_flag & os.ST_RDONLY == 0",
        "no",
        ("read-only kernel settings",),
    )
    yield Probe(
        "writing to the runner", "open('/opt/roost/runner/x', 'w').close()", "EROFS", (READ_ONLY_RUNNER, OWN_UID)
    )
    yield Probe(
        "writing to the packages", "open('/opt/roost/env/x', 'w').close()", "EROFS", (READ_ONLY_PACKAGES, OWN_UID)
    )
    yield Probe("adding to the root", "os.mkdir('/x')", "EROFS", ("read-only root",))
    yield Probe("adding a device", "os.mkdir('/dev/x')", "EROFS", ("read-only devices",))
    # Remounted, devices of the host cannot be opened, and no session starts.
    yield Probe("a device of the host", "os.stat('/dev/' + DEVICE)", "ENOENT", ("own devices", "read-only devices"))
    yield Probe("filling /tmp", "fill('/tmp')", "ENOSPC", ("sized tmp",))
    yield Probe("filling /dev/shm", "fill('/dev/shm')", "ENOSPC", ("sized shared memory",))
    # There is no pid 1 of one's own without processes of one's own.
    yield Probe("a process of the host", "os.getpgid(HOST_PID)", "ESRCH", ("own processes", "runner is pid 1"))
    yield Probe("where the session lies on the host", "DATA in open('/proc/1/cmdline').read()", "no", PID_1)
    yield Probe(
        "killing the runner",
        "os.kill(RUNNER, 9) or 'no effect'",
        "no effect",
        PID_1,
        done=DIED,
    )
    yield Probe(
        "interrupting the runner",
        "os.kill(RUNNER, signal.SIGINT) or 'no effect'",
        "no effect",
        (IGNORED_SIGNALS,),
        done=DIED,
    )
    yield Probe(
        "the runner's memory",
        "open(f'/proc/{RUNNER}/mem', 'r+b').close()",
        "EACCES",
        (CLOSED_MEMORY,),
        never="Yama closes the memory of whatever is no descendant" if _has_yama() else "",
    )
    yield Probe("the runner's descriptors", "len(os.listdir(f'/proc/{RUNNER}/fd'))", "EACCES", (CLOSED_MEMORY,))
    yield Probe("the runner's environment", "open(f'/proc/{RUNNER}/environ').close()", "EACCES", (CLOSED_MEMORY,))
    yield Probe("inheriting the runner's socket", "a_descriptor_listens()", "no", (CLOSED_DESCRIPTORS,))
    yield Probe(
        "the launcher's environment",
        "'LAUNCHER=secret' in open('/proc/self/environ').read()",
        "no",
        ("empty environment", NO_LAUNCH_ENVIRONMENT),
    )
    yield Probe(
        "a server on the host's loopback",
        "connect(socket.AF_INET, ('127.0.0.1', PORT))",
        "ECONNREFUSED",
        ("own network",),
    )
    yield Probe("a named socket of the host", "connect(socket.AF_UNIX, ABSTRACT)", "ECONNREFUSED", ("own network",))
    yield Probe("shared memory of the host", "libc.shmget(SHM_KEY, 0, 0) >= 0", "no", ("own ipc",))
    yield Probe("the host's name", "os.uname().nodename == HOST_NAME", "no", ("own host name",))
    yield Probe(
        "the session's place among the host's groups",
        "any(line.strip().rpartition(':')[2] != '/' for line in open('/proc/self/cgroup'))",
        "no",
        ("own cgroup root",),
        outside=True,
    )
    yield Probe("sharing a terminal session with the host", "os.getsid(0) == 0", "no", ("own terminal session",))
    no_capabilities = "bubblewrap started by an ordinary user gives none in any case"
    holding = "int(open('/proc/self/status').read().partition('CapEff:')[2].split()[0], 16) != 0"
    yield Probe("holding a capability", holding, "no", REAL_ROOT, only_root=no_capabilities)
    yield Probe("using a capability", "socket.sethostname('x')", "EPERM", REAL_ROOT, only_root=no_capabilities)
    yield Probe(
        "being in the host's user namespace",
        "open('/proc/self/uid_map').read().split()[2] == '4294967295'",
        "no",
        ("own user namespace", OWN_UID),
        only_root="an ordinary user can make no other namespace without one, and bubblewrap makes it unasked",
    )
    yield Probe("a user namespace below one's own", "call('unshare', NEWUSER)", "EPERM", (NO_NESTING, "namespaces"))
    yield Probe("a call of the deny list", "call('keyctl', 0, -3, 1)", "EPERM", ("filter",), outside=True)


def _filter_probes() -> Iterator[Probe]:
    yield Probe("ptrace by the 32-bit table", "trace_by_the_32_bit_table()", "SIGSYS", ("foreign calls",), outside=True)
    yield Probe("getpid by the x32 table", "call(0x40000000 | 39)", "ENOSYS", ("x32 calls",), outside=True)

    # A user namespace of one's own is the way to the capability, so whatever refuses one goes as well.
    mounting = (NO_NESTING, "namespaces", "mounting")
    tmpfs = "call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)"
    yield Probe("mounting a file system", f"nested(NEWNS, lambda: {tmpfs})", "EPERM", mounting)
    for name in seccomp.DENIED["mounting"]:
        code = f"nested(NEWNS, lambda: reaches({name!r}, -1, -1, -1, -1, -1))"
        yield Probe(name, code, "EPERM", mounting, outside=True)

    yield Probe("setns", "reaches('setns', -1, 0)", "EPERM", ("namespaces",))
    yield Probe(
        "a namespace by clone", "clone('clone', NEWUSER | 17, 0, 0, 0, 0)", "EPERM", (NO_NESTING, "namespaces by clone")
    )
    clone3 = "clone('clone3', struct.pack('11Q', NEWUSER, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)"
    yield Probe("a namespace by clone3", clone3, "ENOSYS", (NO_NESTING, "clone3"))

    processes = {
        "ptrace": "call('ptrace', 0, 0, 0, 0)",
        "process_vm_readv": "call('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0)",
        "process_vm_writev": "call('process_vm_writev', os.getpid(), 0, 0, 0, 0, 0)",
        "kcmp": "reaches('kcmp', os.getpid(), os.getpid(), 0, 0, 0)",
        "pidfd_getfd": "call('pidfd_getfd', os.pidfd_open(os.getpid()), 0, 0)",
        "process_madvise": "reaches('process_madvise', -1, 0, 0, 0, 0)",
    }
    for name, code in processes.items():
        yield Probe(name, code, "EPERM", ("other processes",), outside=True)

    direct = {
        "key rings": {
            "add_key": "reaches('add_key', 0, 0, 0, 0, 0)",
            "request_key": "reaches('request_key', 0, 0, 0, 0)",
            "keyctl": "call('keyctl', 0, -3, 1)",
        },
        "tracing": {
            "perf_event_open": "reaches('perf_event_open', 0, 0, -1, -1, 0)",
            "bpf": "reaches('bpf', 2, 0, 1 << 20)",
            "lookup_dcookie": "reaches('lookup_dcookie', 0, 0, 0)",
        },
        "page faults": {
            "userfaultfd": "call('userfaultfd', 1)",
            "vmsplice": "reaches('vmsplice', -1, 0, 0, 0)",
        },
        "clock": {
            "adjtimex": "reaches('adjtimex', 0)",
            "settimeofday": "reaches('settimeofday', 1, 0)",
            "clock_settime": "reaches('clock_settime', 0, 0)",
            "clock_adjtime": "reaches('clock_adjtime', 0, 0)",
        },
        "input and output ports": {
            "iopl": "reaches('iopl', 4)",
            "ioperm": "reaches('ioperm', 1 << 20, 1, 1)",
        },
        "file handles": {
            "fanotify_init": "reaches('fanotify_init', 0x200, 0)",
            "name_to_handle_at": "reaches('name_to_handle_at', -1, 0, 0, 0, 0)",
            "open_by_handle_at": "reaches('open_by_handle_at', -1, 0, 0)",
        },
    }
    for group, codes in direct.items():
        for name, code in codes.items():
            yield Probe(name, code, "EPERM", (group,), outside=True)

    # The arguments are wrong in all of these, so the host's real root gets no further than that either.
    roots = {
        "kernel code": {
            "init_module": "reaches('init_module', 0, 0, 0)",
            "finit_module": "reaches('finit_module', -1, 0, -1)",
            "delete_module": "reaches('delete_module', 0, 0)",
            "kexec_load": "reaches('kexec_load', 0, 1 << 20, 0, -1)",
            "kexec_file_load": "reaches('kexec_file_load', -1, -1, 0, 0, -1)",
        },
        "machine": {
            "syslog": "call('syslog', 10, 0, 0)",
            "vhangup": "reaches('vhangup')",
            "acct": "reaches('acct', 1)",
            "swapoff": "reaches('swapoff', 0)",
            "reboot": "reaches('reboot', 0, 0, 0, 0)",
        },
    }
    for group, codes in roots.items():
        for name, code in codes.items():
            reason = "the kernel refuses it to everybody but the host's root in the same way"
            # Outside, vhangup would hang up the terminal of whoever runs the tests.
            outside = name != "vhangup"
            yield Probe(name, code, "EPERM", (*REAL_ROOT, group), only_root=reason, outside=outside)
    yield Probe("swapon", "reaches('swapon', 0, -1)", "EPERM", ("machine",), outside=True)
    yield Probe("quotactl", "reaches('quotactl', 0xff, 0, 0, 0)", "EPERM", ("machine",), outside=True)
    yield Probe("quotactl_fd", "reaches('quotactl_fd', -1, 0xff, 0, 0)", "EPERM", ("machine",), outside=True)

    for name, arguments in {
        "io_uring_setup": (0, 0),
        "io_uring_enter": (-1, 0, 0, 0, 0, 0),
        "io_uring_register": (-1, 0, 0, 0),
    }.items():
        code = f"reaches({name!r}, *{arguments}, refusal=errno.ENOSYS)"
        yield Probe(name, code, "ENOSYS", ("io_uring",), outside=True)

    yield Probe(
        "typing into a terminal", "type_into_own_terminal()", "EPERM", ("typing into a terminal",), outside=True
    )
    linux = "reaches('ioctl', os.openpty()[1], 0x541C, 0)"
    yield Probe("typing into the console", linux, "EPERM", ("typing into a terminal",))

    for name, family in seccomp.FAMILIES.items():
        code = f"reaches('socket', {family}, {5 if name == 'alg' else 3}, 0)"
        if name in ("packet", "xdp"):
            without = (NO_NESTING, "namespaces", "socket families")
            yield Probe(f"a socket of family {name}", f"nested(NEWNET, lambda: {code})", "EPERM", without)
        else:
            yield Probe(f"a socket of family {name}", code, "EPERM", ("socket families",))
    yield Probe("audit by netlink", "reaches('socket', 16, 3, 9)", "EPERM", ("netlink protocols",))


def _has_yama() -> bool:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() != "0"
    return False


PROBES = (*_profile_probes(), *_filter_probes())


@dataclass
class Found:
    """What one probe answered."""

    whole: str
    outside: str | None = None
    without: str = ""
    put_back: dict[str, str] = field(default_factory=dict)
    """The answers with one line of what was left out put back."""


class Weak(BubblewrapRuntime):
    """Bubblewrap with something left out."""

    def __init__(self, without: Collection[str], folder: Path) -> None:
        rules = {group: rule for group, rule in seccomp.rules().items() if group not in without}
        super().__init__(lambda spec, place: _weakened(whole_profile(spec, place), without), rules)
        self._without = without
        self._folder = folder

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        if NO_LAUNCH_ENVIRONMENT in self._without:
            keeper = _KeeperWithEnvironment(keeper)
        return await super().launch(spec, _with_runner(place, self._folder, self._without), keeper)


def _weakened(profile: Profile, without: Collection[str]) -> Profile:
    profile = dict(profile)
    if "own user namespace" in without:
        del profile[NO_NESTING]  # bubblewrap takes the one only with the other
    for name, instead in INSTEAD.items():
        if name in without:
            profile[name] = instead
    read_only = ((READ_ONLY_SYSTEM, "system"), (READ_ONLY_RUNNER, "runner"), (READ_ONLY_PACKAGES, "packages"))
    for name, line in read_only:
        if name in without:
            profile[line] = ["--bind" if word == "--ro-bind" else word for word in profile[line]]
    if NOTHING_OF_THE_HOST in without:
        profile["home"] = [*profile["home"], "--bind", "/", "/host"]
    return {name: line for name, line in profile.items() if name not in without or name in INSTEAD}


# A session does not start without these.
INSTEAD = {
    "own devices": ["--dev-bind", "/dev", "/dev"],
    "sized shared memory": ["--tmpfs", "/dev/shm"],
    "sized tmp": ["--tmpfs", "/tmp"],
}


# file and text of the runner that are cut out
CUTS = {
    CLOSED_MEMORY: ("runner.py", "system.set_dumpable(False)"),
    CLOSED_DESCRIPTORS: ("settling.py", "system.close_all_but({0, 1, 2, control, sync})"),
    IGNORED_SIGNALS: ("runner.py", "signal.SIGINT, "),
}


def _with_runner(place: Place, folder: Path, without: Collection[str]) -> Place:
    cuts = [cut for name, cut in CUTS.items() if name in without]
    if not cuts:
        return place
    copy = folder / "runners" / "+".join(sorted(without))
    shutil.copytree(place.runner, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in cuts:
        source = (copy / name).read_text()
        assert text in source
        (copy / name).write_text(source.replace(text, ""))
    return msgspec.structs.replace(place, runner=copy)


class _KeeperWithEnvironment(KeeperClient):
    """The real keeper starts programs with an empty environment; this one leaves something in it."""

    def __init__(self, keeper: KeeperClient) -> None:
        self._real = keeper

    async def spawn(self, argv: Any, **rest: Any) -> tuple[int, int]:
        return await self._real.spawn(["/usr/bin/env", "LAUNCHER=secret", *argv], **rest)


class WeakSandboxes(Sandboxes):
    """Talks to whatever answers, if told so."""

    checks_peer = True

    async def connect(self, record: SandboxFile, group: SandboxGroup | None) -> None:
        first = psutil.Process(record.init_pid)
        if not self.checks_peer and first.name() == "bwrap":
            [runner] = first.children()
            record.init_pid, record.init_start_time = runner.pid, start_time(runner.pid) or 0
        await super().connect(record, group)


class WeakLauncher(Launcher):
    """Gives sessions no uid of their own, if told so."""

    own_uid = True

    def _free_uid(self) -> int | None:
        return super()._free_uid() if self.own_uid else None


class WeakAgent(LocalAgent):
    """An agent whose parts can be told to be careless."""

    def __init__(self, data_dir: Path, runtimes: Mapping[str, Runtime]) -> None:
        super().__init__(data_dir, runtimes)
        self._sandboxes = self.weak_sandboxes = WeakSandboxes(data_dir, self._run_dir, self._logs)
        self._launcher = self.weak_launcher = WeakLauncher(
            data_dir, self._sandboxes, self._runtimes, self._environments
        )


class Laboratory:
    """An agent, a session to be attacked, and what the host has that a session must not reach."""

    def __init__(self, data_dir: Path, agent: WeakAgent, runtimes: dict[str, Runtime]) -> None:
        self._data = data_dir
        self._agent = agent
        self._runtimes = runtimes
        self._interpreter = find_interpreters()[0]
        self._facts: dict[str, object] = {}
        self._victims: dict[bool, str] = {}
        """Whether sessions have uids of their own → the session to be attacked, which is made like the attacker's"""

    async def furnish(self, stack: contextlib.AsyncExitStack) -> None:
        for name in ("admin.json", "roost.db"):
            (self._data / name).write_text("secret")
            (self._data / name).chmod(0o600)
        (self._data / "images" / "envs" / PACKAGES).mkdir(mode=0o755)
        for own_uid in (True, False):
            self._agent.weak_launcher.own_uid = own_uid
            self._victims[own_uid] = new_session_id()
            spec = SandboxSpec(session_id=self._victims[own_uid], interpreter=self._interpreter, runtime="whole")
            await self._agent.launch(spec)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"\0roost-probe-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        self._facts = {
            "NUMBERS": _numbers(),
            "TMP_BYTES": TMP_BYTES,
            "DATA": str(self._data),
            "RUN": str(run_dir(self._data)),
            "PORT": tcp.getsockname()[1],
            "ABSTRACT": name,
            "SHM_KEY": stack.enter_context(_shared_memory()),
            "HOST_PID": os.getpid(),
            "HOST_NAME": os.uname().nodename,
            "DEVICE": next(n for n in sorted(os.listdir("/dev")) if n not in DEVICES_OF_A_SESSION),
        }

    def code(self, probes: Collection[Probe], *, own_uid: bool = True) -> str:
        victim = self._victims[own_uid]
        facts = self._facts | {
            "VICTIM_HOME": str(self._data / "sandboxes" / victim / "home"),
            "VICTIM_SOCKET": str(run_dir(self._data) / self._agent._sandboxes.load(victim).socket),
        }
        named = "\n".join(f"{name} = {value!r}" for name, value in facts.items())
        at = "def at(path):\n    return ('/host' if os.path.isdir('/host') else '') + path"
        works = "\n".join(f"report({p.name!r}, lambda: {p.code})" for p in probes)
        report = "def report(name, work):\n    print(json.dumps([name, in_child(work)]), flush=True)"
        return "\n".join((PRELUDE, named, at, report, works))

    async def answers(self, without: Collection[str], probes: Collection[Probe]) -> dict[str, str]:
        """What each probe answers inside a fresh session from whose profile something was left out."""
        name = "+".join(sorted(without)) or "whole"
        self._runtimes.setdefault(name, Weak(without, self._data))
        self._agent.weak_launcher.own_uid = OWN_UID not in without
        self._agent.weak_sandboxes.checks_peer = PEER_CHECK not in without
        spec = SandboxSpec(
            session_id=new_session_id(), interpreter=self._interpreter, environment=PACKAGES, runtime=name
        )
        try:
            await self._agent.launch(spec)
        except AgentError as error:
            return {probe.name: f"no session: {error}" for probe in probes}
        events = await run(self._agent, spec.session_id, self.code(probes, own_uid=self._agent.weak_launcher.own_uid))
        await self._agent.destroy(spec.session_id)
        found = dict(json.loads(line) for line in output(events).splitlines())
        rest = DIED if events[-1].data["status"] == "sandbox-lost" else str(events)
        return {probe.name: found.get(probe.name, rest) for probe in probes}


DEVICES_OF_A_SESSION = frozenset(
    ("null", "zero", "full", "random", "urandom", "tty", "console", "core", "fd", "stdin", "stdout", "stderr")
) | {"ptmx", "pts", "shm"}


def _numbers() -> dict[str, int]:
    column = 0 if platform.machine() == "x86_64" else 1
    tables = {**seccomp.DENIED, **seccomp.ABSENT}.values()
    found = {name: numbers[column] for calls in tables for name, numbers in calls.items()}
    found |= {"clone": seccomp.CLONE[column], "ioctl": seccomp.IOCTL[column], "socket": seccomp.SOCKET[column]}
    return {name: -1 if number is None else number for name, number in found.items()}


@contextlib.contextmanager
def _shared_memory() -> Iterator[int]:
    libc = ctypes.CDLL(None)
    key, create = 0x5200_0000 | os.getpid(), 0o1000
    segment = libc.shmget(key, 4096, create | 0o666)
    try:
        yield key
    finally:
        libc.shmctl(segment, 0, None)


async def investigate(data_dir: Path) -> dict[str, Found]:
    """Put every probe to the whole profile, to the least that must be left out, and to that with a line put back."""
    root = os.getuid() == 0
    runtimes: dict[str, Runtime] = {"whole": BubblewrapRuntime()}
    agent = WeakAgent(data_dir, runtimes)
    await agent.open()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(end, agent)
        laboratory = Laboratory(data_dir, agent, runtimes)
        await laboratory.furnish(stack)
        whole = await laboratory.answers((), PROBES)
        found = {name: Found(whole=answer) for name, answer in whole.items()}
        tried_outside = [probe for probe in PROBES if probe.outside]
        for name, answer in (await _outside(laboratory.code(tried_outside))).items():
            found[name].outside = answer
        by_least: dict[tuple[frozenset[str], str], list[Probe]] = defaultdict(list)
        for probe in PROBES:
            outside = found[probe.name].outside
            if not probe.not_shown(root=root, outside=outside):
                # What ends its session takes with it what others have said but the runner not yet passed on.
                alone = probe.name if probe.done == DIED else ""
                by_least[probe.least(root=root, outside=outside), alone].append(probe)
        for (least, _), probes in by_least.items():
            for name, answer in (await laboratory.answers(least, probes)).items():
                found[name].without = answer
            for line in least if len(least) > 1 else ():
                for name, answer in (await laboratory.answers(least - {line}, probes)).items():
                    found[name].put_back[line] = answer
    return found


async def _outside(code: str) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return dict(json.loads(line) for line in said.splitlines())


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder = Path(tempfile.mkdtemp(prefix="roost-probes-", dir="/tmp"))
    folder.chmod(0o711)
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")
    try:
        found = asyncio.run(investigate(folder / "data"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({name: asdict(answers) for name, answers in found.items()}))


if __name__ == "__main__":
    main()
