"""Parameter sweeps (spec/cli.md §5): ranges of values, put into environment and commands in all combinations. Pure."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import click
import msgspec

MAX_COMBINATIONS = 10_000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Range(msgspec.Struct, frozen=True):
    """The values of one parameter."""

    name: str
    values: tuple[str, ...]


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """The commands of a batch run; None skips a stage."""

    clean: str | None = None
    build: str | None = None
    exec: str | None = None


class Combination(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a value for each parameter, put into what it belongs to."""

    env: Mapping[str, str]
    stages: Stages
    chosen: Mapping[str, str]


class RangeType(click.ParamType):  # type: ignore[type-arg] # older releases of click know no argument
    """`NAME=EXPR`, for an option."""

    name = "NAME=EXPR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        if isinstance(value, Range):
            return value
        try:
            return parse_range(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_range(text: str) -> Range:
    """Read `NAME=case:a,b`, `NAME=linspace:start,stop,num` or `NAME=range:start,stop[,step]`.

    `linspace` has its stop among its values, `range` has not.

    Raises:
        ValueError: says what is wrong.
    """
    name, _, expression = text.partition("=")
    kind, colon, arguments = expression.partition(":")
    if not _NAME.fullmatch(name) or not colon:
        raise ValueError(f"{text!r} is not NAME=case:…, NAME=linspace:… or NAME=range:…")
    parts = [part.strip() for part in arguments.split(",")]
    match kind, parts:
        case "case", _ if all(parts):
            return Range(name, tuple(parts))
        case "linspace", [start, stop, num]:
            return Range(name, _linspace(_number(start), _number(stop), _count(num)))
        case "range", [start, stop]:
            return Range(name, _range(_number(start), _number(stop), 1))
        case "range", [start, stop, step]:
            return Range(name, _range(_number(start), _number(stop), _number(step)))
    raise ValueError(f"{expression!r} is not case:a,b or linspace:start,stop,num or range:start,stop[,step]")


def combine(
    env: Mapping[str, str],
    stages: Stages,
    *,
    env_ranges: Sequence[Range] = (),
    build_ranges: Sequence[Range] = (),
    exec_ranges: Sequence[Range] = (),
) -> list[Combination]:
    """Every combination of the values, in the order of the ranges; one, where there are no ranges.

    Raises:
        ValueError: there are more than `MAX_COMBINATIONS`.
    """
    count = 1
    for one in (*env_ranges, *build_ranges, *exec_ranges):
        count *= len(one.values)
    if count > MAX_COMBINATIONS:
        raise ValueError(f"{count} combinations; at most {MAX_COMBINATIONS} are run")
    return [
        Combination(
            env={key: _put(value, of_env) or "" for key, value in env.items()},
            stages=Stages(clean=stages.clean, build=_put(stages.build, of_build), exec=_put(stages.exec, of_exec)),
            chosen={**of_env, **of_build, **of_exec},
        )
        for of_env in _choices(env_ranges)
        for of_build in _choices(build_ranges)
        for of_exec in _choices(exec_ranges)
    ]


def _choices(ranges: Sequence[Range]) -> list[dict[str, str]]:
    names = [one.name for one in ranges]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*(one.values for one in ranges))]


def _put(text: str | None, values: Mapping[str, str]) -> str | None:
    """The text with the values in it; other `$NAME`s are left to the shell."""
    return Template(text).safe_substitute(values) if text is not None and values else text


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _count(text: str) -> int:
    num = int(text)
    if not 1 <= num <= MAX_COMBINATIONS:
        raise ValueError(f"{num} is not a number of values from 1 to {MAX_COMBINATIONS}")
    return num


def _linspace(start: float, stop: float, num: int) -> tuple[str, ...]:
    if num == 1:
        return (_written(start),)
    return tuple(_written(start + (stop - start) * at / (num - 1)) for at in range(num))


def _range(start: float, stop: float, step: float) -> tuple[str, ...]:
    if step == 0:
        raise ValueError("a step of 0 leads nowhere")
    count = max(0, math.ceil((stop - start) / step))
    if not 1 <= count <= MAX_COMBINATIONS:
        raise ValueError(f"a range of {count} values; 1 to {MAX_COMBINATIONS} can be run")
    return tuple(_written(start + step * at) for at in range(count))


def _written(value: float) -> str:
    """As people write it: without what binary fractions leave behind."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"
