"""A minimal Debian that a command can be run in, as on a machine that was installed a minute ago."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from roost.runtimes import cgroups
from tests.e2e.fresh_machine import host

REPOSITORY = Path(__file__).parents[3]
ENTER = Path(__file__).with_name("enter.sh")
PACKAGES = "python3,python3-pip,make,ca-certificates"
ORDINARY = "ada"
UIDS = {"root": 0, ORDINARY: 1000}


class Machine:
    """A root folder, and one user's clean clone in it."""

    def __init__(self, root: Path, user: str) -> None:
        self.root = root
        self.user = user
        self.paths = root.with_name("paths")
        self.home = Path("/root") if user == "root" else Path("/home", user)
        self.clone = root / self.home.relative_to("/") / "roost"

    def run(self, command: str) -> tuple[int, str, float]:
        """Run a shell command in the clone: its exit status, all that it printed, and the seconds that it took.

        Whatever it started ends with it, and so does every mount; also when this process is killed.
        """
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        began = time.monotonic()
        with subprocess.Popen(
            [*enter, "sh", str(ENTER), str(self.root), str(self.paths), str(UIDS[self.user]), command],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                lines = []
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line)
                status = process.wait()
            finally:
                _end(process)
        return status, "".join(lines), time.monotonic() - began

    def _environment(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return host.environment() | {"HOME": str(self.home), "USER": self.user, "PATH": path, "LANG": "C.UTF-8"}


def _end(process: subprocess.Popen[str]) -> None:
    """End the machine's pid 1; `unshare` returns once all other processes have ended with it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.wait(30)
    process.kill()


@contextlib.contextmanager
def fresh_machine(user: str) -> Iterator[Machine]:
    """A machine with a clean clone in the user's home; nothing of it remains. Skips what this host cannot make."""
    check_host()
    tarball = make_tarball()
    folder = Path(tempfile.mkdtemp(prefix="roost-fresh-"))
    try:
        machine = Machine(folder / "root", user)
        machine.root.mkdir()
        subprocess.run(["tar", "--numeric-owner", "-xpf", str(tarball), "-C", str(machine.root)], check=True)
        host.copy_settings(machine.root)
        machine.paths.write_text("".join(f"{path}\n" for path in host.shown_paths(machine.root)))
        clone_for(machine)
        yield machine
    finally:
        remove_groups(folder / "root")
        shutil.rmtree(folder)


def check_host() -> None:
    """Skip with the first reason why this host can make no machine."""
    if os.getuid() != 0:
        pytest.skip("only root can make a root folder and enter it")
    for tool in ("git", "apt-get", "unshare", "setpriv", "pivot_root"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("namespaces of mounts and pids are not allowed here")
    if not host.apt_sources():
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
    if not host.apt_sources():
        pytest.skip(f"apt here has no package lists of Debian {host.CODENAME}")
    if shutil.which("mmdebstrap") is None:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "mmdebstrap"]
        if subprocess.run(install, capture_output=True).returncode:
            pytest.skip("mmdebstrap is missing, and apt could not install it")


def make_tarball() -> Path:
    """The machine's root, made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roost"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{host.CODENAME} {PACKAGES}".encode()).hexdigest()[:8]
    tarball = cache / f"fresh-machine-{digest}.tar"
    if tarball.exists():
        return tarball
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        options, made = Path(folder, "options"), Path(folder, "root.tar")
        options.write_text(host.apt_options())
        what = ["--variant=apt", f"--include={PACKAGES}", f"--aptopt={options}", host.CODENAME, str(made)]
        done = subprocess.run(["mmdebstrap", *what, *host.apt_sources()], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mmdebstrap failed: {done.stderr[-300:]}")
        made.rename(tarball)
    return tarball


def clone_for(machine: Machine) -> None:
    """Put the last commit into the user's home, and for an ordinary user make that home."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(REPOSITORY), str(machine.clone)], check=True)
    if machine.user == "root":
        return
    uid = UIDS[machine.user]
    with (machine.root / "etc/passwd").open("a") as passwd, (machine.root / "etc/group").open("a") as group:
        passwd.write(f"{machine.user}:x:{uid}:{uid}::{machine.home}:/bin/sh\n")
        group.write(f"{machine.user}:x:{uid}:\n")
    subprocess.run(["chown", "-R", f"{uid}:{uid}", str(machine.clone.parent)], check=True)


def remove_groups(root: Path) -> None:
    """Remove the control groups of a machine that was killed; a group bears the name of its agent's run folder."""
    hierarchies = cgroups.here()
    for folder in {*hierarchies.v1.values(), *([hierarchies.v2] if hierarchies.v2 else [])}:
        for run_dir in (root / "run/roost").glob("*"):
            for group in folder.glob(f"roost-{run_dir.name}-*"):
                group.rmdir()
