import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.runner.codec import from_json, to_ascii_json, to_json

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
MESSAGES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(MESSAGES)
def test_decoding_undoes_encoding(message: Any) -> None:
    assert from_json(to_json(message)) == message
    assert from_json(to_ascii_json(message)) == message


@given(MESSAGES)
def test_it_is_the_json_of_everybody_else(message: Any) -> None:
    assert json.loads(to_json(message)) == message
    assert to_ascii_json(message).decode() == json.dumps(message, separators=(",", ":"))
    assert from_json(json.dumps(message, indent=1)) == message


def test_what_utf8_cannot_carry_becomes_a_question_mark() -> None:
    assert to_json({"text": "a\ud800"}) == b'{"text":"a?"}'
    assert from_json(to_ascii_json("a\ud800")) == "a\ud800"


@pytest.mark.parametrize("text", [b"", b" ", b"{", b"{} {}", b"NaN", b"[Infinity]", b"\xff", b'"\n"', b"nul"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its subclasses differ
        from_json(text)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(RecursionError):
        from_json(b"[" * 100_000)
