"""Amounts and images as requests write them (spec/rest-sessions.md §4.3, §4.4)."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.server.domain.images import find_image, host_images
from roost.server.domain.resources import complete_slots, humanize, parse_bytes, parse_count
from roost.wire.errors import ImageNotFound, InvalidParameters
from roost.wire.sandboxes import Interpreter

MINIMUM = {"cpu": 1.0, "mem": float(128 << 20)}
MAXIMUM = {"cpu": 4.0, "mem": math.inf}
DEFAULT = {"cpu": 1.0, "mem": float(1 << 30)}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (256, 256),
        ("256", 256),
        ("4g", 4 << 30),
        ("512m", 512 << 20),
        ("1.5gib", 3 << 29),
        ("2 kb", 2048),
        ("1_024", 1024),
        ("1 KiBytes", 1024),
        ("1byte", 1),
        ("inf", math.inf),
        ("Infinity", math.inf),
    ],
)
def test_bytes_are_read_as_people_write_them(text: Any, amount: float) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "g", "1gg", "-1", "1e3", "0x10", "٣", True, 1.5, None, [], "nan", -5])
def test_what_is_no_amount_of_bytes_is_refused(text: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the value itself is all that there is to say
        parse_bytes(text)


@given(st.integers(0, 1 << 60))
def test_any_number_of_bytes_is_read_back(count: int) -> None:
    assert parse_bytes(count) == parse_bytes(str(count)) == count


@given(st.text() | st.floats() | st.integers() | st.none() | st.booleans())
def test_an_amount_is_finite_and_not_negative_or_refused(value: Any) -> None:
    for parse in (parse_bytes, parse_count):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0


def complete(requested: dict[str, Any], shmem: Any = None) -> dict[str, float]:
    return complete_slots(requested, minimum=MINIMUM, maximum=MAXIMUM, default=DEFAULT, shmem=shmem)


def test_what_is_not_named_is_the_images_default() -> None:
    assert complete({}) == complete({"cpu": None, "mem": 0}) == DEFAULT
    assert complete({"cpu": "2", "mem": "256m"}) == {"cpu": 2, "mem": 256 << 20}


def test_shared_memory_comes_on_top_of_the_least_memory() -> None:
    assert complete({"mem": "256m"}, shmem="128m")["mem"] == 256 << 20
    with pytest.raises(InvalidParameters, match="mem=384m"):
        complete({"mem": "256m"}, shmem="256m")


@pytest.mark.parametrize(
    "requested", [{"cpu": 0.5}, {"cpu": 5}, {"mem": "64m", "cpu": 4}, {"gpu": 1}, {"cpu": "many"}, {"mem": "inf"}]
)
def test_each_slot_is_held_against_the_images_limits(requested: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters):
        complete(requested)


def test_amounts_are_told_as_people_write_them() -> None:
    assert humanize({"cpu": 1.0, "mem": float(320 << 20)}) == "cpu=1 mem=320m"
    assert humanize({"mem": 1000.0}) == "mem=1000"


IMAGES = host_images(
    [
        Interpreter(language=language, version=version, path=f"/usr/bin/{language}{version}")
        for language, version in (("python", "3.12"), ("python", "3.11"), ("lua", "5.4"), ("shell", "5.2"))
    ],
    "x86_64",
)


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("python", "python:3.12"),
        ("python:latest", "python:3.12"),
        ("python:3.12", "python:3.12"),
        ("python:3.11", "python:3.11"),
        ("lablup/python", "python:3.12"),
        ("lablup/python:3.11", "python:3.11"),
        ("index.docker.io/lablup/python:latest", "python:3.12"),
        ("index.docker.io/lablup/python:3.11-ubuntu20.04", "python:3.11"),
        ("python:3", "python:3.12"),
        ("lua", "lua:5.4"),
        ("bash", "shell:5.2"),
        ("bash:5.2", "shell:5.2"),
        ("lablup/shell:5-debian12", "shell:5.2"),
    ],
)
def test_the_newest_interpreter_of_a_language_has_its_plain_name(reference: str, found: str) -> None:
    assert find_image(reference, IMAGES).reference == found


@pytest.mark.parametrize(
    "reference",
    [
        "ruby",
        "python:2.7",
        "index.docker.io/lablup/python:3.9",
        "index.docker.io/other/python:3.11",
        "cr.example.com:5000/stable/python:3.11",
        "cr.example.com:5000/python",
        "",
    ],
)
def test_an_unknown_image_is_refused_with_those_that_are_there(reference: str) -> None:
    with pytest.raises(ImageNotFound) as refused:
        find_image(reference, IMAGES)

    assert "python:3.12, python:3.11" in str(refused.value.hint)


@pytest.mark.parametrize("reference", ["python:", "lablup/python:-3", "python:3.11:3.12"])
def test_a_tag_that_is_none_is_refused(reference: str) -> None:
    with pytest.raises(InvalidParameters, match="not an image reference"):
        find_image(reference, IMAGES)


def test_an_image_has_an_architecture_by_any_of_its_names() -> None:
    assert find_image("python", IMAGES, "AMD64").reference == "python:3.12"
    with pytest.raises(ImageNotFound):
        find_image("python", IMAGES, "arm64")
