"""The system call filter of a sandbox: a deny list, assembled into classic BPF.

A foreign system call table (32-bit calls, x32) is refused as a whole, since a filter that compares only numbers is
passed by it. Denied calls answer EPERM; `clone3` and io_uring answer ENOSYS, so that libc falls back to what can be
filtered.
"""

import errno
import functools
import platform
import struct

from roost.wire.errors import CannotEnforce

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# group → name → (x86_64, aarch64); None where the architecture has no such call
Calls = dict[str, dict[str, tuple[int | None, int | None]]]
DENIED: Calls = {
    "mounting": {
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
    },
    "namespaces": {
        "unshare": (272, 97),
        "setns": (308, 268),
    },
    "other processes": {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
        "pidfd_getfd": (438, 438),
        "process_madvise": (440, 440),
    },
    "key rings": {
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
    },
    "tracing": {
        "perf_event_open": (298, 241),
        "bpf": (321, 280),
        "lookup_dcookie": (212, 18),
    },
    "page faults": {
        "userfaultfd": (323, 282),
        "vmsplice": (278, 75),
    },
    "kernel code": {
        "init_module": (175, 105),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "finit_module": (313, 273),
        "kexec_file_load": (320, 294),
    },
    "machine": {
        "syslog": (103, 116),
        "vhangup": (153, 58),
        "acct": (163, 89),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "reboot": (169, 142),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
    },
    "clock": {
        "adjtimex": (159, 171),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
    },
    "input and output ports": {
        "iopl": (172, None),
        "ioperm": (173, None),
    },
    "file handles": {
        "fanotify_init": (300, 262),
        "name_to_handle_at": (303, 264),
        "open_by_handle_at": (304, 265),
    },
}
ABSENT: Calls = {
    "io_uring": {
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
    },
    "clone3": {
        "clone3": (435, 435),
    },
}

CLONE, SOCKET, IOCTL = (56, 220), (41, 198), (16, 29)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
FAMILIES = {
    "packet": 17,
    "rds": 21,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "alg": 38,
    "vsock": 40,
    "smc": 43,
    "xdp": 44,
}
NETLINK, NETLINK_ROUTE = 16, 0
IOCTLS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32

Instruction = tuple[int, int, int, int]


Rules = dict[str, list[Instruction]]


@functools.cache
def filter_program(machine: str | None = None) -> bytes:
    """The filter for an architecture, this machine's by default, as `bwrap --seccomp` takes it.

    Raises:
        CannotEnforce: there is no table for this architecture.
    """
    return assemble(rules(machine))


def rules(machine: str | None = None) -> Rules:
    """What is refused, by group. Each group stands alone: without it the others refuse what they refused before.

    Raises:
        CannotEnforce: there is no table for this architecture.
    """
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        raise CannotEnforce(f"there is no system call filter for {machine}")
    column = 0 if machine == "x86_64" else 1
    found = {"foreign calls": [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL)]}
    if column == 0:
        found["x32 calls"] = _by_number(_if(_GREATER_EQUAL, 0x40000000, [_error(errno.ENOSYS)]))
    for groups, number in ((DENIED, errno.EPERM), (ABSENT, errno.ENOSYS)):
        for group, calls in groups.items():
            numbers = [numbers[column] for numbers in calls.values()]
            refused = [_if(_EQUAL, call, [_error(number)]) for call in numbers if call is not None]
            found[group] = _by_number(*refused)
    found["namespaces by clone"] = _by_number(_if(_EQUAL, CLONE[column], _clone_rules()))
    found["typing into a terminal"] = _by_number(_if(_EQUAL, IOCTL[column], _ioctl_rules()))
    found["socket families"] = _by_number(_if(_EQUAL, SOCKET[column], _family_rules()))
    found["netlink protocols"] = _by_number(_if(_EQUAL, SOCKET[column], _netlink_rules()))
    return found


def assemble(rules: Rules) -> bytes:
    """The program that refuses what any of the groups refuses, and allows the rest."""
    program = [instruction for group in rules.values() for instruction in group]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _by_number(*rules: list[Instruction]) -> list[Instruction]:
    return [(_LOAD, 0, 0, _NR), *(instruction for rule in rules for instruction in rule)]


def _if(test: int, value: int, body: list[Instruction]) -> list[Instruction]:
    """Run `body` where the accumulator passes the test, else jump over it."""
    return [(test, 0, len(body), value), *body]


def _error(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _clone_rules() -> list[Instruction]:
    return [(_LOAD, 0, 0, _ARG0), *_if(_ANY_BIT, NEW_NAMESPACES, [_error(errno.EPERM)])]


def _ioctl_rules() -> list[Instruction]:
    rules: list[Instruction] = [(_LOAD, 0, 0, _ARG1)]
    for request in IOCTLS.values():
        rules += _if(_EQUAL, request, [_error(errno.EPERM)])
    return rules


def _family_rules() -> list[Instruction]:
    rules: list[Instruction] = [(_LOAD, 0, 0, _ARG0)]
    for family in FAMILIES.values():
        rules += _if(_EQUAL, family, [_error(errno.EPERM)])
    return rules


def _netlink_rules() -> list[Instruction]:
    route_only = [
        (_LOAD, 0, 0, _ARG2),
        *_if(_EQUAL, NETLINK_ROUTE, [(_RETURN, 0, 0, _ALLOW)]),
        _error(errno.EPERM),
    ]
    return [(_LOAD, 0, 0, _ARG0), *_if(_EQUAL, NETLINK, route_only)]
