"""What `*` means for a stage of a batch run, by language (spec/execution.md §4.2)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Union

    # A shell command; None where there is nothing to do; or why it cannot be done.
    Way = Union[str, None, "Missing"]

MISSING = 127
_LINKED = "-lpthread -lm -lrt -ldl"


class Missing:
    """There is nothing that this stage could work on; its exit code is 127."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence


def default_way(stage: str, language: str, program: str, home: str) -> Way:
    """What `*` does in a stage, by the files that the home holds now."""
    files = _Files(home)
    if stage == "clean":
        return "make clean" if language in ("c", "cpp") and files.has("Makefile") else None
    if stage == "build":
        if files.has("Makefile"):
            return "make"
        build = _BUILDS.get(language)
        return build(files, quote(program)) if build is not None else None
    execute = _EXECUTIONS.get(language)
    return execute(files, quote(program)) if execute is not None else Missing(f"{language} has no default to execute")


class _Files:
    def __init__(self, home: str) -> None:
        self._home = home

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self._home, name))

    def is_program(self, name: str) -> bool:
        path = os.path.join(self._home, name)
        return os.path.isfile(path) and os.access(path, os.X_OK)

    def ending(self, suffix: str) -> str:
        """Every file of a suffix below the home, quoted for the shell."""
        found = []
        for folder, folders, names in os.walk(self._home):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [os.path.join(folder, name) for name in sorted(names) if name.endswith(suffix)]
        return " ".join(quote(os.path.join(".", os.path.relpath(path, self._home))) for path in found)

    def programs(self, folder: str) -> list[str]:
        path = os.path.join(self._home, folder)
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        return [os.path.join(folder, name) for name in names if self.is_program(os.path.join(folder, name))]


def quote(text: str) -> str:
    """A text as one word of a shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _build_python(files: _Files, program: str) -> Way:
    if files.has("setup.py"):
        return f"{program} -m pip install --user -e ."
    return "echo 'there is no setup.py, so nothing is built' >&2"


def _build_c(suffix: str) -> Callable[[_Files, str], Way]:
    def build(files: _Files, program: str) -> Way:
        if not files.has("main" + suffix):
            return Missing(f"there is no main{suffix} to build")
        return f"{program} {files.ending(suffix)} -o ./main {_LINKED}"

    return build


def _build_go(files: _Files, program: str) -> Way:
    return f"{program} build -o main {files.ending('.go')}" if files.has("main.go") else Missing("there is no main.go")


def _build_rust(files: _Files, program: str) -> Way:
    if files.has("Cargo.toml"):
        return "cargo build"
    return f"{program} -o main main.rs" if files.has("main.rs") else Missing("there is no Cargo.toml and no main.rs")


def _build_java(files: _Files, _program: str) -> Way:
    sources = files.ending(".java")
    return f"javac {sources}" if sources else Missing("there are no .java files")


def _build_haskell(files: _Files, program: str) -> Way:
    sources = files.ending(".hs")
    return f"{program} --make main {sources}" if files.has("main.hs") else Missing("there is no main.hs")


def _execute_first(*names: str) -> Callable[[_Files, str], Way]:
    def execute(files: _Files, _program: str) -> Way:
        found = [name for name in names if files.is_program(name)]
        return quote("./" + found[0]) if found else Missing(f"there is no program {' or '.join(names)}")

    return execute


def _execute_rust(files: _Files, program: str) -> Way:
    found = [*files.programs("target/debug"), *files.programs("target/release")]
    return quote("./" + found[0]) if found else _execute_first("main")(files, program)


def _execute_java(files: _Files, program: str) -> Way:
    for name in ("main/Main", "Main", "main"):
        if files.has(name + ".class"):
            return f"{program} {name.replace('/', '.')}"
    return Missing("there is no class main.Main or Main")


def _execute_script(name: str) -> Callable[[_Files, str], Way]:
    return lambda files, program: f"{program} {name}" if files.has(name) else Missing(f"there is no {name}")


_BUILDS: dict[str, Callable[[_Files, str], Way]] = {
    "python": _build_python,
    "c": _build_c(".c"),
    "cpp": _build_c(".cpp"),
    "golang": _build_go,
    "rust": _build_rust,
    "java": _build_java,
    "haskell": _build_haskell,
}
_SCRIPTS = {
    "python": "main.py",
    "shell": "main.sh",
    "julia": "main.jl",
    "lua": "main.lua",
    "nodejs": "main.js",
    "octave": "main.m",
    "perl": "main.pl",
    "php": "main.php",
    "r": "main.R",
    "ruby": "main.rb",
}
_EXECUTIONS: dict[str, Callable[[_Files, str], Way]] = {
    **{language: _execute_script(name) for language, name in _SCRIPTS.items()},
    **{language: _execute_first("main", "a.out") for language in ("c", "cpp")},
    **{language: _execute_first("main") for language in ("golang", "haskell")},
    "rust": _execute_rust,
    "java": _execute_java,
}
