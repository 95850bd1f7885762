"""Texts that clients send, as values: JSON, and YAML where that is allowed."""

from typing import Any

import orjson

from roost.wire.errors import InvalidParameters

MAX_NESTING = 100
"""Levels of objects and lists in a text; a tenth of what Python's own recursion allows."""

MAX_YAML = 1 << 16
"""Characters of a YAML text; it takes a thousand times as long as JSON to read."""


def parse_json(raw: bytes | str, what: str) -> Any:
    """What a client has sent as JSON; `what` names it in the refusal.

    Raises:
        InvalidParameters: it is none, or nested too deeply.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidParameters(f"{what} is not JSON: {error}") from None
    # Looking at the text first is quick, also where much code or input is in it.
    opened = raw.count("[") + raw.count("{") if isinstance(raw, str) else raw.count(b"[") + raw.count(b"{")
    if opened > MAX_NESTING and _is_deeper(value, MAX_NESTING):
        raise InvalidParameters(f"{what} is nested more than {MAX_NESTING} levels deep")
    return value


def parse_yaml(raw: bytes | str, what: str) -> Any:
    """What a client has sent as YAML, as JSON would have it: keys and dates are texts.

    Anchors are refused: a few of them may stand for gigabytes.

    Raises:
        InvalidParameters: it is none, too long, nested too deeply, has anchors, or what no JSON can say.
    """
    import yaml  # few ever send it, and it is as large as many a service

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(raw) > MAX_YAML:
        raise InvalidParameters(f"{what} is longer than {MAX_YAML} characters", hint="send larger ones as JSON")
    try:
        depth = 0
        for event in yaml.parse(raw, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidParameters(f"{what} has anchors (`&`, `*`)", hint="write out what they stand for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                raise InvalidParameters(f"{what} is nested more than {MAX_NESTING} levels deep")
        value = yaml.load(raw, Loader=loader)  # noqa: S506 - a safe one
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        problem = " ".join(str(error).split())
        raise InvalidParameters(f"{what} is not YAML: {problem:.200}") from None


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(layer)
