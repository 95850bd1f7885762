"""What is called differently in other versions of the API (spec/client-sdk.md §5)."""

from collections.abc import Sequence
from typing import Any

__all__ = ("apply_version_aware_fields", "get_id_or_name", "get_naming", "naming_profile")

_UP_TO_V4 = {
    "path": "kernel",
    "session_events_path": "/stream/kernel/_/events",
    "name_arg": "clientSessionToken",
    "event_name_arg": "sessionId",
    "name_gql_field": "sess_id",
    "type_gql_field": "sess_type",
}
_SINCE_V5 = {
    "path": "session",
    "session_events_path": "/events/session",
    "name_arg": "name",
    "event_name_arg": "name",
    "name_gql_field": "name",
    "type_gql_field": "type",
}
naming_profile = {key: (_UP_TO_V4[key], _SINCE_V5[key]) for key in _SINCE_V5}


def get_naming(api_version: tuple[int, str], key: str) -> str:
    """The name of `key` in this version of the API."""
    return naming_profile[key][1 if api_version[0] >= 5 else 0]


def get_id_or_name(api_version: tuple[int, str], obj: Any) -> str:
    """What refers to a session in paths: its id where the API knows ids, its name otherwise."""
    if api_version[0] >= 5 and obj.id is not None:
        return str(obj.id)
    if obj.name is None:
        raise AssertionError("this session has neither a name nor an id that the API version can use")
    return str(obj.name)


def apply_version_aware_fields(api_session: Any, fields: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Resolve the callables in `(label, field)` pairs."""
    return [(label, field(api_session) if callable(field) else field) for label, field in fields]
