"""Objects as bundles of MIME types that fit a frame (docs/protocol/runner.md §3).

Whatever is asked here for its looks is the user's: it may raise, be of another type than it says, or be a gigabyte.
"""

from __future__ import annotations

import os
import sys
import traceback

from .codec import from_json, to_json
from .protocol import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any, Callable

    Show = Callable[[dict[str, Any]], None]

PLAIN = "text/plain"
NOTE = "application/vnd.roost.note+json"
MAX_TEXT = MAX_PAYLOAD // 16
MAX_ID = 256

# What is left of a frame is for the names of its fields, a display id and a note.
_ROOM = MAX_PAYLOAD - (32 << 10)
_MAX_TYPES = 64
_MAX_TYPE = 128
_MAX_NOTED = 16
_PLAIN_TYPES = frozenset({bool, bytes, complex, dict, float, int, list, set, str, tuple})
"""They have none of these methods, and nobody can give them any."""
_METHODS = {
    "text/html": "_repr_html_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "application/json": "_repr_json_",
}


class DisplayHandle:
    """A display that can be shown anew."""

    def __init__(self, display_id: str, show: Show) -> None:
        self.display_id = display_id
        self._show = show

    def __repr__(self) -> str:
        return f"<DisplayHandle display_id={self.display_id}>"

    def display(self, obj: object) -> None:
        """Show an object at one more place with this id."""
        self._show(_display(obj, self.display_id))

    def update(self, obj: object) -> None:
        """Show another object in the place of the one that was there."""
        self._show(_display(obj, self.display_id, update=True))


def display(show: Show, objects: tuple[object, ...], display_id: object) -> DisplayHandle | None:
    """The builtin `display`; `show` sends one word to the runner."""
    identifier = None if display_id is None else _checked_id(display_id)
    for one in objects:
        show(_display(one, identifier))
    return None if identifier is None else DisplayHandle(identifier, show)


def update_display(show: Show, obj: object, display_id: object) -> None:
    """The builtin `update_display`."""
    show(_display(obj, _checked_id(display_id), update=True))


def result(value: object) -> dict[str, Any]:
    """The word that tells the value of a last expression."""
    bundle = bundle_of(value)
    if _is_figure(value):
        _close(value)  # otherwise the end of the run would show it once more
    return {"op": "result", "text": bundle.pop(PLAIN), "mime": bundle}


def figures() -> list[dict[str, Any]]:
    """A display of each figure that pyplot has open; then they are closed."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    try:
        try:
            return [_display(pyplot.figure(number)) for number in list(pyplot.get_fignums())]
        finally:
            pyplot.close("all")
    except Exception:
        _complain()
        return []


def find_pyplot(show: Show, finders: list[Any], name: str, path: Any, target: Any) -> ModuleSpec | None:
    """Where these finders find pyplot, to be given a `show` that shows as soon as it is loaded."""
    for finder in finders:
        spec: ModuleSpec | None = finder.find_spec(name, path, target)
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _PyplotLoader(spec.loader, show)  # type: ignore[assignment]
            return spec
    return None


def bundle_of(value: object) -> dict[str, str]:
    """The plain text, then what else there is and fits; what does not fit is named in a note."""
    return _fitted(_plain(value), _alternatives(value))


class _PyplotLoader:
    def __init__(self, loader: Any, show: Show) -> None:
        self._loader = loader
        self._show = show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        module.__loader__ = module.__spec__.loader = self._loader

        def show(*_: object, **__: object) -> None:
            """Show all open figures, here and now, and close them."""
            for word in figures():
                self._show(word)

        module.show = show


def _display(obj: object, display_id: str | None = None, update: bool = False) -> dict[str, Any]:
    word: dict[str, Any] = {"op": "display", "mime": bundle_of(obj)}
    if display_id is not None:
        word["display_id"] = display_id
    if update:
        word["update"] = True
    return word


def _checked_id(display_id: object) -> str:
    if display_id is True:
        return os.urandom(8).hex()
    if not isinstance(display_id, str) or not 1 <= len(display_id) <= MAX_ID:
        raise ValueError(f"a display_id is True, or a text of 1 to {MAX_ID} characters")
    return str.__str__(display_id)


def _plain(value: object) -> str:
    try:
        text = str.__str__(repr(value))
    except Exception as error:
        text = f"<an object of {_name(type(value))}, whose repr raised {_name(type(error))}>"
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _name(kind: type) -> str:
    return type.__dict__["__name__"].__get__(kind)[:_MAX_TYPE]  # type: ignore[no-any-return]  # past its metaclass


def _alternatives(value: object) -> dict[str, str | int]:
    """By type the content, or how long it would be if that is hopelessly much."""
    raw: dict[str, Any] = {}
    if type(value) in _PLAIN_TYPES:
        return {}
    try:
        given = _ask(value, "_repr_mimebundle_", include=None, exclude=None)
        raw.update((mime, one) for mime, one in dict.items(_data(given) or {}) if _is_type(mime))
    except Exception:
        pass
    for mime, method in _METHODS.items():
        if mime not in raw:
            raw[mime] = _ask(value, method)
    if raw["image/png"] is None and _is_figure(value):
        raw["image/png"] = _png_of(value)
    found: dict[str, str | int] = {}
    for mime, one in raw.items():
        try:
            content = _content(mime, _data(one))
        except Exception:
            continue
        if content is not None:
            found[mime] = content
    return found


def _ask(value: object, method: str, **arguments: object) -> Any:
    # Of the type, as Python does for its own special methods: a class is not shown by its instances' methods, and
    # objects that answer to every name are not asked.
    try:
        found = getattr(type(value), method, None)
        return None if found is None else found(value, **arguments)
    except Exception:
        return None


def _data(answer: Any) -> Any:
    """These methods may answer with a pair of data and metadata."""
    return answer[0] if type(answer) is tuple and len(answer) == 2 else answer


def _is_type(mime: Any) -> bool:
    if type(mime) is not str or mime in (PLAIN, NOTE):
        return False
    return len(mime) <= _MAX_TYPE and "/" in mime and mime.isascii() and mime.isprintable()


def _content(mime: str, data: Any) -> str | int | None:
    """Text as it is, JSON as its text, everything else in base64; None for what cannot be that."""
    if data is None:
        return None
    if mime == "application/json" or mime.endswith("+json"):
        return _short(_json(data))
    if mime.startswith("text/") or mime in ("image/svg+xml", "application/javascript"):
        return _short(str.__str__(data)) if isinstance(data, str) else None
    import binascii

    if isinstance(data, str):
        short = _short(str.__str__(data))
        if isinstance(short, int):
            return short
        data = binascii.a2b_base64(short)
    view = memoryview(data)
    if not view.nbytes:
        return None
    size = (view.nbytes + 2) // 3 * 4
    return size if size > _ROOM else binascii.b2a_base64(view, newline=False).decode()


def _json(data: Any) -> str:
    if isinstance(data, str):
        from_json(data)
        return str.__str__(data)
    import json

    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _short(text: str) -> str | int:
    return text if len(text) <= _ROOM else len(text)


def _fitted(text: str, found: dict[str, str | int]) -> dict[str, str]:
    sizes = {mime: one if isinstance(one, int) else len(to_json(one)) for mime, one in found.items()}
    room = _ROOM - len(to_json(text))
    kept: set[str] = set()
    for mime in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[mime] + len(to_json(mime)) + 2
        if room < 0 or len(kept) == _MAX_TYPES:
            break
        kept.add(mime)
    bundle = {PLAIN: text}
    bundle.update((mime, one) for mime, one in found.items() if mime in kept and isinstance(one, str))
    dropped = [{"mime": mime, "bytes": size} for mime, size in sizes.items() if mime not in kept]
    if dropped:
        note = {"dropped": dropped[:_MAX_NOTED], "more": max(0, len(dropped) - _MAX_NOTED)}
        bundle[NOTE] = to_json(note).decode()
    return bundle


def _is_figure(value: object) -> bool:
    try:
        kind = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        return kind is not None and isinstance(value, kind)
    except Exception:
        return False


def _png_of(figure: Any) -> bytes | None:
    import io

    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format="png", bbox_inches="tight")
    except Exception:
        _complain()
        return None
    return buffer.getvalue()


def _close(figure: object) -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    try:
        if pyplot is not None:
            pyplot.close(figure)
    except Exception:
        _complain()


def _complain() -> None:
    try:
        sys.stderr.write(traceback.format_exc())
    except Exception:
        pass
