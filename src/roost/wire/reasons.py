"""Why something is in the state it is in."""

import msgspec


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A machine-readable code, a sentence for people, and what they can do about it."""

    code: str
    """Stable, kebab-case: `memory-limit`, `kernel-exited`, `self-terminated`, `no-available-instances`."""
    sentence: str
    hint: str | None = None
    limit: int | None = None
    """The limit that was reached, in the unit of `unit`."""
    peak: int | None = None
    """What was reached, in the same unit."""
    unit: str | None = None
    """`bytes`, `processes`, `seconds`."""
