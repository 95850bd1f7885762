"""Versions of the session API (spec/README.md §3)."""

import re

SERVER_VERSION = "v7.20230615"
"""The highest version that our server speaks; it is announced by `GET /`."""

CLIENT_VERSION = "v6.20210815"
"""The highest version that our SDK asks for."""

ACCEPTED_VERSIONS = (
    "v4.20181215",
    "v4.20190115",
    "v4.20190315",
    "v4.20190615",
    "v5.20191215",
    "v6.20200815",
    "v6.20210815",
    "v6.20220315",
    "v6.20220615",
    "v6.20221201",
    "v6.20230315",
    "v7.20230615",
)
"""Every version that a request may name, oldest first."""

_VERSION = re.compile(r"v(\d+)\.(\d{8})")


def parse_version(text: str) -> tuple[int, str]:
    """Split `v6.20210815` into `(6, "20210815")`, the pair that versions are compared by.

    Raises:
        ValueError: the text is not a version.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"not an API version: {text!r} (expected something like {CLIENT_VERSION})")
    return int(match[1]), match[2]
