"""Folders of packages, each named by what it is made of, and never changed once it is there.

images/envs/<digest>/     a virtual environment that can lie anywhere; sessions see it read-only
images/staging/           where they are made, swept on start
images/uv-cache/          on the same file system, so that environments share their files by hard links
"""

import asyncio
import hashlib
import os
import platform
import re
import stat
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec
import structlog

from roost.agent.sweep import remove_tree
from roost.agent.uv import Uv, execute, find_uv, set_up_uv
from roost.runtimes.base import ENVIRONMENT
from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.errors import AgentError, ImageNotFound, InvalidParameters, RoostError
from roost.wire.sandboxes import Interpreter

FORMAT = 1
"""Grows when the same requirements are to give another folder."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([^\s;]+))?")
_LOCK_TIMEOUT_S = "10"
"""So long uv waits for another that outlives its agent, before it leaves its cache as it is."""

log = structlog.get_logger(__name__)


class EnvironmentStore:
    """The environments of one node."""

    def __init__(self, folder: Path) -> None:
        self._envs = folder / "envs"
        self._staging = folder / "staging"
        self._cache = folder / "uv-cache"
        self._making: dict[str, asyncio.Lock] = {}
        self._pruning = asyncio.Lock()
        self._builds = 0
        self._unneeded: set[str] = set()
        """packages, as `name-version` or `name`, of environments that are gone or have never come to be"""

    async def open(self) -> None:
        """Sweep what an earlier agent has left half-made."""
        for folder, mode in ((self._envs, 0o711), (self._staging, 0o700), (self._cache, 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            folder.chmod(mode)
        for left in self._staging.iterdir():
            try:
                await asyncio.to_thread(remove_tree, left)
            except OSError as error:  # a uv that outlives its agent writes to the end
                log.warning("staging.not_swept", path=str(left), error=str(error))

    def find(self, digest: str) -> Path:
        """The folder of an environment.

        Raises:
            ImageNotFound: this node has no such environment.
        """
        path = self._envs / digest
        if not path.is_dir():
            raise ImageNotFound(f"this node has no environment {digest[:12]}", hint="build its image again")
        return path

    def digests(self) -> list[str]:
        """Every environment that is there."""
        return sorted(path.name for path in self._envs.iterdir())

    async def remove(self, digest: str) -> None:
        """Remove an environment, if it is there; it is gone from its place at once.

        What no other one holds goes from uv's cache too, now or when what is being built is done.
        """
        async with self._lock(digest):
            path = self._envs / digest
            if path.is_dir():
                self._unneeded |= await asyncio.to_thread(_packages, path)
                path.chmod(0o700)
                going = path.rename(self._staging / f"{digest}.going")
                await asyncio.to_thread(remove_tree, going)
        await self._prune_if_idle()

    async def _prune_if_idle(self) -> None:
        async with self._pruning:
            if self._unneeded and not self._builds:
                await self._prune()

    async def _prune(self) -> None:
        """Remove what is unneeded from uv's cache; environments have its files by hard links, and keep them."""
        kept = await asyncio.to_thread(lambda: {one for path in self._envs.iterdir() for one in _packages(path)})
        # Which version was wanted in vain is not always known; then any that is kept keeps all of them.
        kept |= {one.partition("-")[0] for one in kept}
        names = sorted({one.partition("-")[0] for one in self._unneeded - kept})
        if names or not kept:
            environ = {**os.environ, "UV_CACHE_DIR": str(self._cache), "UV_LOCK_TIMEOUT": _LOCK_TIMEOUT_S}
            try:
                # Without names it is all of it, of which nobody needs anything where there are no environments.
                argv = [find_uv(), "cache", "clean", "--quiet", *(names if kept else ())]
                async with aclosing(execute(argv, environ, self._staging, "pruning the cache")) as lines:
                    async for _ in lines:
                        pass
            except RoostError as error:
                log.warning("cache.not_pruned", error=error.message)
                return
            log.info("cache.pruned", packages=len(names))
        self._unneeded.clear()

    async def build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        """Make an environment, unless it is there; gives what is said meanwhile, and in the end the environment.

        Those who want the same one at the same time wait for the first. One that fails or is given up leaves nothing
        but what `open` sweeps, and in uv's cache what packages depend on that have not been solved.

        Raises:
            InvalidParameters: the requirements cannot be met by wheels.
            AgentError: uv is missing or takes too long, or there is no space.
        """
        async with self._pruning:
            self._builds += 1
        try:
            async with aclosing(self._build(request)) as steps:
                async for step in steps:
                    yield step
        except OSError as error:
            raise AgentError(f"the environment cannot be written: {error}", hint="is the disk full?") from error
        except RecursionError as error:
            raise InvalidParameters("the folders of a package are nested too deeply") from error
        finally:
            self._builds -= 1
            await self._prune_if_idle()

    async def _build(self, request: EnvironmentRequest) -> AsyncGenerator[str | Environment, None]:
        uv = await set_up_uv(self._cache, os.environ, request.interpreter.path)
        wanted = request.requirements
        try:
            lock = request.lock
            if lock is None:
                async with aclosing(self._solve(request, uv)) as steps:
                    async for step in steps:
                        if isinstance(step, Locked):
                            lock = step.text
                        else:
                            yield step
            assert lock is not None
            wanted = lock
            digest = environment_digest(request.interpreter, lock)
            async with self._lock(digest):
                if not (self._envs / digest).is_dir():
                    async with aclosing(self._make(request.interpreter, lock, digest, uv)) as lines:
                        async for line in lines:
                            yield line
        except BaseException:
            self._unneeded |= _wanted(wanted)
            raise
        size = await asyncio.to_thread(_size, self._envs / digest)
        yield Environment(digest=digest, lock=lock, size_bytes=size)

    async def _solve(self, request: EnvironmentRequest, uv: Uv) -> AsyncGenerator["str | Locked", None]:
        with tempfile.TemporaryDirectory(dir=self._staging) as name:
            folder = Path(name)
            (folder / "requirements.txt").write_text(request.requirements)
            argv = [
                *(
                    uv.program,
                    "pip",
                    "compile",
                    *uv.options,
                    "requirements.txt",
                    "--output-file",
                    "lock.txt",
                    "--quiet",
                ),
                *("--python", request.interpreter.path, "--only-binary", ":all:", "--generate-hashes"),
                *("--no-header", "--no-annotate"),
            ]
            async with aclosing(execute(argv, uv.environ, folder, "solving the requirements")) as lines:
                async for line in lines:
                    yield line
            yield Locked((folder / "lock.txt").read_text())

    async def _make(self, interpreter: Interpreter, lock: str, digest: str, uv: Uv) -> AsyncGenerator[str, None]:
        staging = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=self._staging))
        try:
            env = staging / "env"
            (staging / "lock.txt").write_text(lock)
            for argv, doing, allowed in _steps(uv, interpreter, env):
                async with aclosing(execute(argv, uv.environ, staging, doing, allowed=allowed)) as lines:
                    async for line in lines:
                        yield line
            await asyncio.to_thread(self._publish, env, self._envs / digest)
            log.info("environment.built", digest=digest)
        finally:
            await asyncio.to_thread(remove_tree, staging)

    def _publish(self, env: Path, target: Path) -> None:
        _close(env)
        env.rename(target)
        # Last, since who is not root cannot move a folder that he cannot write.
        target.chmod(0o555)

    def _lock(self, digest: str) -> asyncio.Lock:
        return self._making.setdefault(digest, asyncio.Lock())


class Locked(msgspec.Struct, frozen=True):
    """What requirements were solved to."""

    text: str


def environment_digest(interpreter: Interpreter, lock: str) -> str:
    """The name of an environment: over all that decides what is in it."""
    made_of = {
        "format": FORMAT,
        "interpreter": [interpreter.language, interpreter.version, interpreter.path],
        "lock": [line.strip() for line in lock.splitlines() if line.strip()],
        "machine": platform.machine(),
    }
    return hashlib.sha256(msgspec.json.encode(made_of, order="deterministic")).hexdigest()


def site_packages(env: Path | str, interpreter: Interpreter) -> Path:
    """Where an environment's modules lie."""
    return Path(env, "lib", f"python{interpreter.version}", "site-packages")


def _steps(uv: Uv, interpreter: Interpreter, env: Path) -> list[tuple[list[str], str, tuple[int, ...]]]:
    """The commands that make an environment, what each does, and its exit codes that are no failure.

    Nothing that came out of a package is executed: uv looks at the environment's Python before there are packages in
    it, and the modules are compiled by the host's Python, which is told to look at no packages at all.
    """
    where = str(env)
    return [
        (
            [uv.program, "venv", "--quiet", "--relocatable", "--no-project", "--python", interpreter.path, where],
            "making the environment",
            (0,),
        ),
        (
            [
                *(
                    uv.program,
                    "pip",
                    "sync",
                    *uv.options,
                    "lock.txt",
                    "--python",
                    f"{where}/bin/python",
                    "--require-hashes",
                ),
                *("--only-binary", ":all:", "--link-mode", "hardlink"),
            ],
            "installing the packages",
            (0,),
        ),
        # Packages may hold templates that do not compile, which concerns nobody who does not import them.
        (
            [
                *(interpreter.path, "-I", "-S", "-m", "compileall", "-qq", "-j", "0"),
                *("--invalidation-mode", "unchecked-hash"),
                *("-s", where, "-p", ENVIRONMENT, str(site_packages(env, interpreter))),
            ],
            "compiling the modules",
            (0, 1),
        ),
    ]


def _close(env: Path) -> None:
    """Let everybody read and nobody write; the topmost folder is left to the caller."""
    for folder, names, files in os.walk(env):
        for path in (Path(folder, name) for name in (*names, *files)):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                path.chmod(0o555)
            elif stat.S_ISREG(mode):
                path.chmod(0o555 if mode & 0o100 else 0o444)
            elif not stat.S_ISLNK(mode):
                raise AgentError(f"a package brings something that is neither a file nor a folder: {path.name}")


def _packages(env: Path) -> set[str]:
    found = (path.name.removesuffix(".dist-info") for path in env.glob("lib/python*/site-packages/*.dist-info"))
    return {_package(*one.partition("-")[::2]) for one in found}


def _wanted(requirements: str) -> set[str]:
    """The packages of a list of requirements or a lock, the version of each where it is told."""
    found = (_REQUIREMENT.match(line) for line in requirements.splitlines())
    return {_package(match[1], match[2] or "") for match in found if match}


def _package(name: str, version: str) -> str:
    name = re.sub(r"[-_.]+", "_", name).lower()
    return f"{name}-{version}" if version else name


def _size(env: Path) -> int:
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(env) for name in names)
