"""Texts that clients send."""

import pytest

from roost.server.http.documents import parse_json, parse_yaml
from roost.wire.errors import InvalidParameters


def test_yaml_is_read_as_json_would_have_it() -> None:
    text = "name: a\ncount: 3\nwhen: 2026-11-28\n1: one\nnothing:\nsome: [1.5, yes]"

    assert parse_yaml(text, "the body") == {
        "name": "a",
        "count": 3,
        "when": "2026-11-28",
        "1": "one",
        "nothing": None,
        "some": [1.5, True],
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a: [", "YAML"),
        (b"\xff\xfe\xff", "YAML"),
        ("a: \x00", "YAML"),
        ("a: 2026-13-45", "YAML"),
        ("? [a]\n: 1", "YAML"),
        ("a: !!set {x, y}", "YAML"),
        ("a: !!binary aGk=", "YAML"),
        ("a: !!python/object/apply:os.system [id]", "YAML"),
        ("a: 99999999999999999999999", "YAML"),
        ("a: &x {}\nb: *x", "anchors"),
        ("- " * 101 + "1", "levels"),
        ("a" * 70_000, "longer"),
    ],
)
def test_what_is_no_yaml_for_us_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidParameters, match=told):
        parse_yaml(text, "the body")


def test_json_may_be_nested_a_hundred_levels_deep() -> None:
    assert parse_json("[" * 100 + "]" * 100, "the body")
    with pytest.raises(InvalidParameters, match="100 levels"):
        parse_json("[" * 101 + "]" * 101, "the body")
