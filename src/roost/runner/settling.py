"""How a worker, a fork of the runner, leaves the runner's ways behind."""

from __future__ import annotations

import os
import traceback

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Callable, NoReturn
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


def become_worker(descriptors: tuple[int, int, int, int], work: Callable[[], None]) -> NoReturn:
    """Do the work of a worker that runs no code of the user's in its own process, and end.

    Args:
        descriptors: those of `leave_runner`, in its order.
        work: raises `EOFError` where the runner has closed the conversation.
    """
    code = 1
    try:
        leave_runner(*descriptors)
        work()
        code = 0
    except EOFError:
        pass  # the runner is gone, and with it whoever wants to know
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)
