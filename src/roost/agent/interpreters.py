"""The interpreters and compilers of this machine's `/usr` that host images are made of."""

import os
import re
import subprocess
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from roost.runtimes.programs import first_closed
from roost.wire.sandboxes import Interpreter

PROBE_TIMEOUT_S = 5.0
USR = Path("/usr")

_PYTHON = re.compile(r"python3\.(\d+)")
_OLDEST = 8
_known: dict[str, str] = {}
"""What programs said of themselves to this process."""


class Language(msgspec.Struct, frozen=True):
    """How a language is found."""

    name: str
    """As clients of the compatible API know it, and as the runner does."""
    programs: tuple[str, ...]
    """The first of these that is there is the language's."""
    version: str
    """What its answer is searched for."""
    arguments: tuple[str, ...] = ("--version",)
    needs: tuple[str, ...] = ()
    """Other programs without which it is of no use."""


LANGUAGES = (
    Language("shell", ("bash",), r"version (\d+\.\d+)"),
    Language("c", ("gcc", "cc", "clang"), r"(\d+\.\d+)\.\d+"),
    Language("cpp", ("g++", "c++", "clang++"), r"(\d+\.\d+)\.\d+"),
    Language("golang", ("go",), r"go(\d+\.\d+)", ("version",)),
    Language("haskell", ("ghc",), r"(\d+\.\d+)", ("--numeric-version",)),
    Language("java", ("java",), r'version "(\d+(?:\.\d+)?)', ("-version",), ("javac",)),
    Language("julia", ("julia",), r"version (\d+\.\d+)"),
    Language("lua", ("lua5.4", "lua5.3", "lua"), r"Lua (\d+\.\d+)", ("-v",)),
    Language("nodejs", ("node", "nodejs"), r"v(\d+\.\d+)"),
    Language("octave", ("octave-cli", "octave"), r"version (\d+\.\d+)"),
    Language("perl", ("perl",), r"\(v(\d+\.\d+)"),
    Language("php", ("php",), r"PHP (\d+\.\d+)"),
    Language("r", ("Rscript",), r"version (\d+\.\d+)"),
    Language("ruby", ("ruby",), r"ruby (\d+\.\d+)"),
    Language("rust", ("rustc",), r"rustc (\d+\.\d+)"),
)


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what was found but is of no use."""

    interpreters: list[Interpreter]
    """Pythons first, the newest of all at the front."""
    refused: list[tuple[str, str]]
    """Pairs of a program's path and why no image is made of it."""


def find_interpreters() -> list[Interpreter]:
    """What host images can be made of here, the newest Python first."""
    return survey().interpreters


def remembering_interpreters(file: Path) -> list[Interpreter]:
    """The same by what an earlier look wrote down, so that a server starts without executing a dozen programs."""
    try:
        known = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        known = {}
    before = dict(known)
    found = survey(known=known).interpreters
    if known != before:
        making = file.with_suffix(".new")
        making.write_bytes(msgspec.json.encode(known))
        making.rename(file)
    return found


def survey(
    usr: Path = USR, languages: Sequence[Language] = LANGUAGES, known: MutableMapping[str, str] | None = None
) -> Survey:
    """Look through the program folders below `usr`; what lies elsewhere is not seen by a sandbox.

    Programs other than Python are executed, side by side, to learn their versions.

    Args:
        known: what programs said of themselves when they were asked before; those that have changed since are asked
            again, and their answers are put in.
    """
    known = _known if known is None else known
    refused: list[tuple[str, str]] = []
    found = list(_pythons(usr, refused))
    if not found:
        return Survey(interpreters=[], refused=[*refused, (str(usr / "bin"), "no Python from 3.8 on runs the runner")])
    with ThreadPoolExecutor(max_workers=4) as pool:
        for answer in pool.map(lambda language: _look_for(language, usr, found[0].path, known), languages):
            if isinstance(answer, Interpreter):
                found.append(answer)
            elif answer is not None:
                refused.append(answer)
    return Survey(interpreters=found, refused=refused)


def _pythons(usr: Path, refused: list[tuple[str, str]]) -> Iterator[Interpreter]:
    programs: dict[int, Path] = {}
    for folder in _folders(usr):
        for path in folder.iterdir() if folder.is_dir() else ():
            if (match := _PYTHON.fullmatch(path.name)) and int(match[1]) >= _OLDEST:
                programs.setdefault(int(match[1]), path)
    for minor, path in sorted(programs.items(), reverse=True):
        if (why := _unusable(path, usr)) is not None:
            refused.append((str(path), why))
        else:
            yield Interpreter(language="python", version=f"3.{minor}", path=str(path))


def _look_for(
    language: Language, usr: Path, python: str, known: MutableMapping[str, str]
) -> Interpreter | tuple[str, str] | None:
    path = _find(language.programs, usr)
    if path is None:
        return None
    why = _unusable(path, usr)
    for name in language.needs:
        if why is None and (other := _find((name,), usr)) is None:
            why = f"{name} is not installed"
        elif why is None and other is not None:
            why = _unusable(other, usr)
    if why is not None:
        return str(path), why
    try:
        key = f"{path} {path.stat().st_mtime_ns}"
        said = known[key] = known.get(key) or _ask(path, language.arguments)
    except (OSError, subprocess.SubprocessError) as error:
        return str(path), f"it does not tell its version: {error}"
    match = re.search(language.version, said)
    if match is None:
        return str(path), f"it does not tell its version: {said.strip()[:80]!r}"
    return Interpreter(language=language.name, version=match[1], path=str(path), python=python)


def _folders(usr: Path) -> tuple[Path, ...]:
    return (usr / "local" / "bin", usr / "bin")


def _find(names: Sequence[str], usr: Path) -> Path | None:
    paths = (folder / name for name in names for folder in _folders(usr))
    return next((path for path in paths if path.is_file() or path.is_symlink()), None)


def _unusable(path: Path, usr: Path) -> str | None:
    """Why a session cannot execute a program; None where it can."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(usr.resolve()):
            return f"it is {real}, outside of {usr}"
        closed = first_closed(real)
    except OSError as error:
        return f"it cannot be reached: {error.strerror}"
    return None if closed is None else f"sessions have uids of their own, which cannot pass {closed}"


def _ask(path: Path, arguments: Sequence[str]) -> str:
    """What a program says of itself, on either stream: Java uses the wrong one."""
    asked = subprocess.run(
        [path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.defpath, "LC_ALL": "C", "HOME": "/nonexistent"},
        cwd="/",
        timeout=PROBE_TIMEOUT_S,
        check=True,
    )
    return asked.stdout.decode(errors="replace")
