"""Completing names by the variables of a live interpreter.

Only dictionaries of modules, objects and classes are looked into: nothing of the user's is called, so nothing can
hang or change.
"""

from __future__ import annotations

import builtins
import keyword
import re
import sys

from .protocol import MAX_COMPLETION, MAX_COMPLETIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

_WORD = re.compile(r"(?:[^\W\d]\w*\.)*(?:[^\W\d]\w*)?\Z")
_IMPORT = re.compile(r"\s*import\s+(?:[\w.]+(?:\s+as\s+\w+)?\s*,\s*)*(?P<module>[\w.]*)\Z")
_FROM = re.compile(r"\s*from\s+(?P<module>[\w.]*)\Z")
_FROM_IMPORT = re.compile(
    r"\s*from\s+(?P<module>[\w.]+)\s+import\s+(?:\(?\s*)(?:\w+(?:\s+as\s+\w+)?\s*,\s*)*(?P<name>\w*)\Z"
)
_MISSING = object()
_OF_C = (type(type.__dict__["__dict__"]), type(type.__dict__["__mro__"]))
"""Descriptors that nobody can write in Python."""


def complete(text: str, namespace: dict[str, Any]) -> list[str]:
    """Whole words that the end of `text` may become: `os.path` for `import os; os.pa`, sorted, private ones last."""
    line = text.rpartition("\n")[2].rpartition(";")[2]
    module = _IMPORT.match(line) or _FROM.match(line)
    if module is not None:
        return _sorted(_modules(module["module"]))
    member = _FROM_IMPORT.match(line)
    if member is not None:
        found = [
            *_names(sys.modules.get(member["module"])),
            *(_last(name) for name in _modules(member["module"] + ".")),
        ]
        return _sorted(name for name in found if name.startswith(member["name"]))
    found_word = _WORD.search(line)
    word = found_word.group() if found_word is not None else ""
    before = line[: len(line) - len(word)].rstrip()
    if not word or before.endswith((".", "'", '"')):
        return []
    return _sorted(_words(word, namespace))


def _words(word: str, namespace: dict[str, Any]) -> Iterable[str]:
    path, dot, beginning = word.rpartition(".")
    if not dot:
        names = [*namespace, *vars(builtins), *keyword.kwlist]
        return [name for name in names if type(name) is str and name.startswith(word)]
    first, *rest = path.split(".")
    value = namespace.get(first, vars(builtins).get(first, _MISSING))
    for name in rest:
        value = _look_up(value, name)
    return [f"{path}.{name}" for name in _names(value) if name.startswith(beginning)]


def _look_up(value: Any, name: str) -> Any:
    """An attribute that lies in a dictionary; what would have to be computed is missing."""
    for names in _dictionaries(value):
        if name in names:
            found = names[name]
            return _MISSING if _is_computed(type(found)) and not callable(found) else found
    return _MISSING


def _names(value: Any) -> Iterable[str]:
    if value is _MISSING or value is None:
        return []
    return [name for names in _dictionaries(value) for name in names if type(name) is str and name.isidentifier()]


def _dictionaries(value: Any) -> Iterable[Any]:
    """The dictionaries that hold a value's attributes: its own, and those of its classes."""
    if value is _MISSING:
        return
    cls = type(value)
    if issubclass(cls, type):
        for base in _bases(value):
            yield _dictionary(base)
    else:
        # The keys of a dictionary may be texts of the user's own kind, and it may be of the user's kind itself.
        yield {name: one for name, one in dict.items(_own(value)) if type(name) is str}
    for base in _bases(cls):
        if base is not object or issubclass(cls, type):
            yield _dictionary(base)


def _own(value: Any) -> Any:
    found: Any = next((one["__dict__"] for one in map(_dictionary, _bases(type(value))) if "__dict__" in one), None)
    if type(found) not in _OF_C:  # it has none, or it would have to be computed
        return {}
    try:
        own = found.__get__(value)
    except (AttributeError, TypeError):
        return {}
    return own if isinstance(own, dict) else {}


def _is_computed(cls: type) -> bool:
    return any("__get__" in _dictionary(base) for base in _bases(cls))


def _bases(cls: type) -> Any:
    return type.__dict__["__mro__"].__get__(cls)


def _dictionary(cls: type) -> Any:
    return type.__dict__["__dict__"].__get__(cls)


def _modules(beginning: str) -> Iterable[str]:
    """Modules whose dotted name begins so; a package is only looked into where it has been imported."""
    package, dot, rest = beginning.rpartition(".")
    if not dot:
        from pkgutil import iter_modules

        names = [*sys.builtin_module_names, *(module.name for module in iter_modules())]
        return [name for name in names if name.startswith(rest)]
    path = vars(sys.modules[package]).get("__path__") if package in sys.modules else None
    if path is None:
        return []
    from pkgutil import iter_modules

    return [f"{package}.{module.name}" for module in iter_modules(path) if module.name.startswith(rest)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _sorted(names: Iterable[str]) -> list[str]:
    unique = {name for name in names if len(name) <= MAX_COMPLETION}
    return sorted(unique, key=lambda name: (_last(name).startswith("_"), name))[:MAX_COMPLETIONS]
