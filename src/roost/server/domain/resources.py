"""Amounts of resources: how they are written, and what an image allows (spec/rest-sessions.md §4.3)."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from roost.wire.errors import InvalidParameters

SLOTS = ("cpu", "mem")
"""Every slot that we know: cores, and bytes."""

_BYTES = re.compile(r"(\d{1,24}(?:\.\d{1,24})?|inf|infinity)\s*([kmgtpezy]?)(?:i?b|i?bytes?)?", re.ASCII)
_POWERS = {prefix: 1024**power for power, prefix in enumerate(("", *"kmgtpezy"))}


def parse_bytes(value: Any) -> int | float:
    """Bytes of an integer, or of a text such as `512m`, `1.5gib`, `2 kb`; `inf` is infinite.

    Raises:
        ValueError: it is no such amount.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, str):
        text = value.strip().lower().replace("_", "")
    else:
        raise ValueError(value)
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError(value)
    if match[1].startswith("inf"):
        return math.inf
    return int(Decimal(match[1]) * _POWERS[match[2]])


def parse_count(value: Any) -> float:
    """A count of an integer, a decimal, or a text of one.

    Raises:
        ValueError: it is no such amount.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    try:
        count = float(Decimal(str(value)))
    except InvalidOperation:
        raise ValueError(value) from None
    if math.isnan(count) or count < 0:
        raise ValueError(value)
    return count


def complete_slots(
    requested: Mapping[str, Any],
    *,
    minimum: Mapping[str, float],
    maximum: Mapping[str, float],
    default: Mapping[str, float],
    shmem: Any = None,
) -> dict[str, float]:
    """Check what was asked for against what the image allows, and fill in what was not.

    Args:
        requested: as in the request; null and 0 leave a slot to the image.
        shmem: shared memory that was asked for, on top of the image's least memory.

    Raises:
        InvalidParameters: a slot is unknown, unreadable, or outside of the image's limits.
    """
    for slot in requested:
        if slot not in SLOTS:
            raise InvalidParameters(f"unknown resource slot {slot!r}", hint=f"the slots here are {', '.join(SLOTS)}")
    least = dict(minimum)
    if shmem is not None:
        least["mem"] += _amount("mem", shmem, name="shmem")
    amounts: dict[str, float] = {}
    for slot in SLOTS:
        value = requested.get(slot)
        amounts[slot] = (_amount(slot, value) if value is not None else 0) or max(default[slot], least[slot])
        if amounts[slot] < least[slot]:
            hint = f"ask for more{'; a number without a unit is bytes, 256m is mebibytes' if slot == 'mem' else ''}"
            raise InvalidParameters(f"{slot} is below the image's minimum ({humanize(least)})", hint=hint)
        if amounts[slot] > maximum[slot]:
            raise InvalidParameters(f"{slot} is above the image's maximum ({humanize(maximum)})", hint="ask for less")
    return amounts


def humanize(amounts: Mapping[str, float]) -> str:
    """As people write it: `cpu=1 mem=256m`."""
    return " ".join(f"{slot}={_human_bytes(n) if slot == 'mem' else f'{n:g}'}" for slot, n in amounts.items())


def _amount(slot: str, value: Any, name: str | None = None) -> float:
    try:
        amount = parse_bytes(value) if slot == "mem" else parse_count(value)
    except ValueError:
        raise InvalidParameters(
            f"not an amount of {name or slot}: {value!r}", hint="cpu is a number of cores, mem bytes such as 512m"
        ) from None
    if math.isinf(amount):
        raise InvalidParameters(f"{name or slot} cannot be infinite here", hint="name a finite amount")
    return amount


def _human_bytes(count: float) -> str:
    if math.isinf(count):
        return "inf"
    for suffix in reversed("kmgt"):
        if count >= _POWERS[suffix] and count % _POWERS[suffix] == 0:
            return f"{count / _POWERS[suffix]:g}{suffix}"
    return f"{count:g}"
