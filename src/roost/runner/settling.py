"""How a worker, a fork of the runner, leaves the runner's ways behind."""

from __future__ import annotations

import os

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal


def leave_runner(control: int, sync: int, stdout: int, stderr: int) -> None:
    """Keep the descriptors of a worker alone, in a process group of its own, and be the first that the system ends."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    system.close_all_but({0, 1, 2, control, sync})
    # Debuggers and profilers of the user work on the user's own process. Not before: /proc is root's until then.
    system.set_dumpable(True)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
