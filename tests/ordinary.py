"""Runs programs of this tree as an ordinary user, wherever the tree lies and whoever owns it."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mounts import bind, leave_the_hosts_mounts

SOURCE = Path(__file__).parents[1]
UID = 65533


class OrdinaryUser:
    """Somebody who is not root: an unused uid where the tests run as root, else whoever runs them."""

    def __init__(self, source: Path, become: Callable[[], None] | None, home: Path) -> None:
        self._source = source
        self._become = become
        self._home = home

    def run(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run our Python with these arguments, in the root of the tree."""
        keep = {name: value for name, value in os.environ.items() if name in ("PATH", "CI", "SSL_CERT_FILE")}
        environ = keep | {
            "HOME": str(self._home),
            "XDG_RUNTIME_DIR": str(self._home / "run"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{self._source / 'src'}:{self._source}",
        }
        python = Path(sys.executable)
        if python.is_relative_to(SOURCE):
            python = self._source / python.relative_to(SOURCE)
        return subprocess.run(
            [str(python), *arguments],
            preexec_fn=self._become,
            capture_output=True,
            text=True,
            env=environ,
            cwd="/",
            timeout=timeout_s,
            check=False,
        )

    @property
    def source(self) -> Path:
        """The tree as this user sees it."""
        return self._source


@contextlib.contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """An ordinary user with a home of its own, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="roost-ordinary-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "run").mkdir(mode=0o700)
        if os.getuid() != 0:
            yield OrdinaryUser(SOURCE, None, home)
            return
        source = Path(folder) / "source"
        source.mkdir()
        for path in (Path(folder), source):
            path.chmod(0o755)
        for path in (home, home / "run"):
            os.chown(path, UID, UID)
        yield OrdinaryUser(source, _become(source), home)


def _become(source: Path) -> Callable[[], None]:
    """Runs in the child before the program: a mount of its own shows it the tree, also below folders closed to it."""

    def become() -> None:
        leave_the_hosts_mounts()
        bind(SOURCE, source)
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)

    return become
