"""Objects as MIME bundles that fit a frame, whatever their methods do."""

import base64
import json
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.runner import display
from roost.runner.codec import to_json
from roost.runner.display import NOTE, bundle_of
from roost.runner.protocol import MAX_PAYLOAD
from roost.server.domain.console import console_of
from roost.wire import mime as wire_mime
from roost.wire.runs import Event, EventKind

PNG = b"\x89PNG\r\n\x1a\n"


def an_object(**answers: Any) -> object:
    """An object whose methods, without their underscores, answer this."""
    methods = {f"_repr_{name}_": lambda _self, answer=answer, **_: answer for name, answer in answers.items()}
    return type("Shown", (), {"__repr__": lambda _self: "shown", **methods})()


def dropped(bundle: dict[str, str]) -> list[str]:
    return [one["mime"] for one in json.loads(bundle[NOTE])["dropped"]]


def test_an_ordinary_object_is_its_repr() -> None:
    assert bundle_of([1, "a"]) == {"text/plain": "[1, 'a']"}


def test_every_method_gives_its_type() -> None:
    shown = an_object(html="<b>", svg="<svg/>", png=PNG, jpeg=b"\xff\xd8", json={"a": ["é"]}, markdown="#", latex="$")

    assert bundle_of(shown) == {
        "text/plain": "shown",
        "text/html": "<b>",
        "image/svg+xml": "<svg/>",
        "image/png": base64.b64encode(PNG).decode(),
        "image/jpeg": "/9g=",
        "text/markdown": "#",
        "text/latex": "$",
        "application/json": '{"a": ["é"]}',
    }


def test_a_bundle_of_the_objects_own_comes_before_single_methods() -> None:
    own = {"text/html": "own", "text/plain": "not this", "application/vnd.x+json": {"a": 1}, "image/gif": b"GIF"}

    bundle = bundle_of(an_object(mimebundle=(own, {"metadata": 1}), html="other", latex="$"))

    assert bundle == {
        "text/plain": "shown",
        "text/html": "own",
        "application/vnd.x+json": '{"a": 1}',
        "image/gif": "R0lG",
        "text/latex": "$",
    }


def test_images_that_are_base64_already_stay_so_and_metadata_is_left_out() -> None:
    bundle = bundle_of(an_object(png=base64.encodebytes(PNG * 20).decode(), html=("<b>", {"isolated": True})))

    assert base64.b64decode(bundle["image/png"], validate=True) == PNG * 20
    assert bundle["text/html"] == "<b>"


@pytest.mark.parametrize("wrong", [None, 5, [], ["<b>"], {}, b"<b>", object(), ("a", "b", "c")])
def test_what_is_no_text_is_left_out(wrong: object) -> None:
    assert bundle_of(an_object(html=wrong, svg=wrong, markdown=wrong, latex=wrong)) == {"text/plain": "shown"}


@pytest.mark.parametrize("wrong", [None, 5, object(), b"", "!", "é", "abcde", [b"a"]])
def test_what_is_no_image_is_left_out(wrong: object) -> None:
    assert "image/png" not in bundle_of(an_object(png=wrong))


@pytest.mark.parametrize("wrong", [object(), float("nan"), "{", {1: object()}, b"{}", (one for one in "ab")])
def test_what_is_no_json_is_left_out(wrong: object) -> None:
    assert bundle_of(an_object(json=wrong)) == {"text/plain": "shown"}


@pytest.mark.parametrize(
    "wrong", [5, "a", [1], {1: "a"}, {"": "a"}, {"html": "a"}, {"a/é": "b"}, {"a/" + "b" * 200: "c"}]
)
def test_a_bundle_of_the_objects_own_that_is_none_is_left_out(wrong: object) -> None:
    assert bundle_of(an_object(mimebundle=wrong)) == {"text/plain": "shown"}


def test_an_object_cannot_write_the_note() -> None:
    assert bundle_of(an_object(mimebundle={NOTE: "{}"})) == {"text/plain": "shown"}


class Raising:
    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    def __repr__(self) -> NoReturn:
        raise ValueError("no")

    def _repr_html_(self) -> NoReturn:
        raise RecursionError

    def _repr_mimebundle_(self) -> NoReturn:
        raise MemoryError


class NamelessMeta(type):
    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        raise RuntimeError

    def __getattr__(cls, name: str) -> NoReturn:
        raise RuntimeError(name)


class Nameless(metaclass=NamelessMeta):
    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


class Liar:
    """Says that it is a text, a dict, a figure, anything."""

    def __repr__(self) -> str:
        return "liar"

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str

    def _repr_html_(self) -> "Liar":
        return self

    _repr_png_ = _repr_json_ = _repr_mimebundle_ = _repr_html_


def test_errors_of_an_object_are_no_errors_of_the_run() -> None:
    assert bundle_of(Raising()) == {"text/plain": "<an object of Raising, whose repr raised ValueError>"}
    assert bundle_of(Nameless()) == {"text/plain": "<an object of Nameless, whose repr raised TypeError>"}
    assert bundle_of(Liar()) == {"text/plain": "liar"}


def test_an_interrupt_in_the_middle_of_a_method_is_one() -> None:
    class Endless:
        def _repr_html_(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle_of(Endless())


def test_a_class_is_not_shown_by_the_methods_of_its_instances() -> None:
    assert list(bundle_of(Raising)) == ["text/plain"]


def test_texts_of_a_subclass_become_plain_ones() -> None:
    class Strange(str):
        def __len__(self) -> int:
            return 0

        def __iter__(self) -> Iterator[str]:
            while True:
                yield "a"

        def __getitem__(self, _key: object) -> NoReturn:
            raise RuntimeError

    bundle = bundle_of(an_object(html=Strange("x" * 2_000_000), latex=Strange("$")))

    assert type(bundle["text/latex"]) is str
    assert dropped(bundle) == ["text/html"]


def test_a_long_repr_is_cut_with_a_mark() -> None:
    text = bundle_of("a" * 3_000_000)["text/plain"]

    assert text[:3] == "'aa"
    assert text[-2:] == "a…"
    assert len(text) == display.MAX_TEXT + 1


def test_the_biggest_types_are_dropped_with_a_note() -> None:
    bundle = bundle_of(an_object(html="h" * 900_000, svg="s" * 500_000, png=bytes(2_000_000), latex="$"))

    assert list(bundle) == ["text/plain", "image/svg+xml", "text/latex", NOTE]
    assert json.loads(bundle[NOTE]) == {
        "dropped": [{"mime": "text/html", "bytes": 900_002}, {"mime": "image/png", "bytes": 2_666_668}],
        "more": 0,
    }


def test_a_bundle_of_very_many_types_has_some_of_them() -> None:
    bundle = bundle_of(an_object(mimebundle={f"a/b{number}": "YWJj" for number in range(10_000)}))
    note = json.loads(bundle[NOTE])

    assert len(bundle) < 100
    assert len(bundle) - 2 + len(note["dropped"]) + note["more"] == 10_000


@given(
    st.sampled_from(["a", "\x00", "\x7f", "é", "€", "😀", "\ud800", '"']),
    st.integers(0, 1_200_000),
    st.integers(0, 1_200_000),
)
def test_whatever_is_shown_fits_a_frame_and_the_note_can_be_read(char: str, long: int, longer: int) -> None:
    shown = an_object(html=char * long, svg=char * longer, png=bytes(longer))
    shown = type("Long", (type(shown),), {"__repr__": lambda _self: char * long})()

    frame = {"mime": (bundle := bundle_of(shown)), "display_id": char * display.MAX_ID, "update": True}

    assert len(to_json(frame)) <= MAX_PAYLOAD
    items = console_of([Event(1, EventKind.DISPLAY, {"mime": bundle})])
    assert (NOTE in bundle) == any(kind == "stderr" and "too long to be shown" in text for kind, text in items)


def test_both_sides_call_the_note_the_same() -> None:
    assert (display.NOTE, display.PLAIN) == (wire_mime.NOTE, wire_mime.PLAIN)


def test_displays_with_an_id_can_be_updated() -> None:
    words: list[dict[str, Any]] = []

    handle = display.display(words.append, (1, 2), "a")
    assert handle is not None
    handle.update(3)
    handle.display(4)
    display.update_display(words.append, 5, "a")

    place = {"op": "display", "display_id": "a"}
    assert words == [
        place | {"mime": {"text/plain": "1"}},
        place | {"mime": {"text/plain": "2"}},
        place | {"mime": {"text/plain": "3"}, "update": True},
        place | {"mime": {"text/plain": "4"}},
        place | {"mime": {"text/plain": "5"}, "update": True},
    ]


def test_a_display_without_an_id_has_no_handle_and_true_is_a_new_id() -> None:
    words: list[dict[str, Any]] = []

    assert display.display(words.append, (1,), None) is None
    handles = [display.display(words.append, (1,), True) for _ in range(2)]

    assert words[0] == {"op": "display", "mime": {"text/plain": "1"}}
    assert words[1]["display_id"] != words[2]["display_id"]
    assert [handle.display_id for handle in handles if handle] == [word["display_id"] for word in words[1:]]


@pytest.mark.parametrize("wrong", ["", "a" * 257, 5, b"a", False])
def test_other_ids_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="display_id"):
        display.update_display(lambda word: None, 1, wrong)
