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

# name → (x86_64, aarch64); None where the architecture has no such call
DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "pivot_root": (155, 41),
    "adjtimex": (159, 171),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "lookup_dcookie": (212, 18),
    "clock_settime": (227, 112),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "vmsplice": (278, 75),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
}
ABSENT = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
}

CLONE, SOCKET, IOCTL = (56, 220), (41, 198), (16, 29)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
FAMILIES = {
    "netlink": 16,
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
NETLINK_ROUTE = 0
IOCTLS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32

Instruction = tuple[int, int, int, int]


@functools.cache
def filter_program(machine: str | None = None) -> bytes:
    """The filter for an architecture, this machine's by default, as `bwrap --seccomp` takes it.

    Raises:
        CannotEnforce: there is no table for this architecture.
    """
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        raise CannotEnforce(f"there is no system call filter for {machine}")
    column = 0 if machine == "x86_64" else 1
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if column == 0:
        program += _if(_GREATER_EQUAL, 0x40000000, [_error(errno.ENOSYS)])  # the x32 table
    for calls, number in ((DENIED, errno.EPERM), (ABSENT, errno.ENOSYS)):
        for call in (numbers[column] for numbers in calls.values()):
            if call is not None:
                program += _if(_EQUAL, call, [_error(number)])
    program += _if(_EQUAL, CLONE[column], _clone_rules())
    program += _if(_EQUAL, IOCTL[column], _ioctl_rules())
    program += _if(_EQUAL, SOCKET[column], _socket_rules())
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _if(test: int, value: int, body: list[Instruction]) -> list[Instruction]:
    """Run `body` where the accumulator passes the test, else jump over it."""
    return [(test, 0, len(body), value), *body]


def _error(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _clone_rules() -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _ARG0),
        *_if(_ANY_BIT, NEW_NAMESPACES, [_error(errno.EPERM)]),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _ioctl_rules() -> list[Instruction]:
    rules: list[Instruction] = [(_LOAD, 0, 0, _ARG1)]
    for request in IOCTLS.values():
        rules += _if(_EQUAL, request, [_error(errno.EPERM)])
    return [*rules, (_RETURN, 0, 0, _ALLOW)]


def _socket_rules() -> list[Instruction]:
    rules: list[Instruction] = [(_LOAD, 0, 0, _ARG0)]
    for name, family in FAMILIES.items():
        if name != "netlink":
            rules += _if(_EQUAL, family, [_error(errno.EPERM)])
    route_only = [
        (_LOAD, 0, 0, _ARG2),
        *_if(_EQUAL, NETLINK_ROUTE, [(_RETURN, 0, 0, _ALLOW)]),
        _error(errno.EPERM),
    ]
    return [*rules, *_if(_EQUAL, FAMILIES["netlink"], route_only), (_RETURN, 0, 0, _ALLOW)]
