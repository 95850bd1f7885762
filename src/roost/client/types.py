"""Values that mean "nothing was given"."""

import enum

__all__ = ("Sentinel", "Undefined", "sentinel", "undefined")


class Undefined(enum.Enum):
    """The type of `undefined`; compare with `is`, since it is truthy."""

    token = 0


class Sentinel(enum.Enum):
    """The type of `sentinel`, which ends a stream of values."""

    token = 0


undefined = Undefined.token
sentinel = Sentinel.token
