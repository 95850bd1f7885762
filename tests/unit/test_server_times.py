from datetime import UTC, datetime

import pytest

from roost.server.domain.times import parse_start
from roost.wire.errors import InvalidParameters

NOW = datetime(2026, 1, 5, 4, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45m", 2700),
        ("1d6h", 108000),
        ("3hours 5min", 11100),
        ("90s", 90),
        ("90", 90),
        ("0", 0),
        ("+90", 90),
        ("-1 hr", -3600),
        ("1day 2hrs 3minutes 4secs", 93784),
        ("2026-01-05T04:11:00+00:00", 60),
        ("2026-01-05T04:11:00Z", 60),
        ("2026-01-05T13:10:30+09:00", 30),
        ("2026-01-05T04:11:00.5", 60.5),
        (" 2026-01-05 04:11 ", 60),
    ],
)
def test_a_start_is_an_instant_or_a_duration_from_now(text: str, seconds: float) -> None:
    assert parse_start(text, NOW) == pytest.approx(NOW + seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "soon",
        "5x",
        "m",
        "+",
        "-",
        "1h1d",
        "5m5m",
        "1 0",
        "٣",
        "1e9",
        "nan",
        "inf",
        "999999999999d",
        "24:00",
        "9" * 40,
    ],
)
def test_nonsense_is_no_start(text: str) -> None:
    with pytest.raises(InvalidParameters, match="starts_at"):
        parse_start(text, NOW)
