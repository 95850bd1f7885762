"""JSON between agent, runner and kernel, without loading the package `json`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.runner import codec

FAULTS = ["", "{", '{"a"', '{"a":1', "[1", "[1,]", '"a', "nul", "1 2", "NaN", "{1:2}", '{"a":1}}', '"\\x"', "\ud800"]
RUNNER = Path(codec.__file__).parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_what_was_encoded_is_decoded(value: Any) -> None:
    assert codec.from_json(codec.to_json(value)) == json.loads(codec.to_json(value))
    assert codec.from_json(codec.to_ascii_json(value)) == value


@pytest.mark.parametrize("text", FAULTS)
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that it is one is all that the runner needs
        codec.from_json(text)


def test_it_is_so_too_where_json_was_never_loaded() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(RUNNER)!r})
from roost.runner import codec
assert 'json.decoder' not in sys.modules
for text in {FAULTS!r}:
    try:
        codec.from_json(text)
    except ValueError:
        continue
    raise AssertionError(text)
"""

    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
