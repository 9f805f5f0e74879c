"""Command line options from dataclasses: a field is an option, its type the option's, the string under it the help.

Metadata of a field may hold `flags`, short names such as `-o`, and `metavar`, what the help shows for the value.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

Command = Callable[..., None]
Config = TypeVar("Config", bound=Any)


class Blocks(click.ParamType[Any]):
    """Block numbers as `0-9,20`: a frozenset of int."""

    name = "blocks"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`0-9,20` -> {0, ..., 9, 20}."""
        if isinstance(value, frozenset):
            return value
        found: set[int] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
            if not match or (match[2] and int(match[2]) < int(match[1])):
                self.fail(f"{value!r} is no list of blocks such as 0-9,20.", param, ctx)
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        return frozenset(found)


class NumberOr(click.ParamType[Any]):
    """A number, or one of some words."""

    name = "number"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word, or the number as a float."""
        if value in self.words:
            return value
        try:
            return float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a number nor {' or '.join(self.words)}.", param, ctx)


def options(*kinds: type, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command the options of some dataclasses, and one instance of each as its last arguments, in this order.

    without: fields that are no options of this command and keep their defaults.
    """

    def offered(kind: type) -> list[Field[Any]]:
        return [one for one in fields(kind) if one.name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            filled = [kind(**{one.name: values.pop(one.name) for one in offered(kind)}) for kind in kinds]
            command(*values.values(), *filled)

        decorated: Command = call
        for kind in reversed(kinds):
            hints, helps = get_type_hints(kind), field_docstrings(kind)
            for one in reversed(offered(kind)):
                decorated = _option(one, hints[one.name], helps.get(one.name, ""))(decorated)
        return decorated

    return decorate


def named(option: str) -> bool:
    """Whether an option was given on the command line; outside of one, nothing was."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is ParameterSource.COMMANDLINE


def over(preset: Config, chosen: Config) -> Config:
    """The preset's settings, with those of `chosen` replaced that were named on the command line."""
    return replace(preset, **given(chosen))


def given(config: Any) -> dict[str, Any]:
    """The fields of a config that were named on the command line."""
    return {one.name: getattr(config, one.name) for one in fields(config) if named(one.name)}


@functools.cache
def field_docstrings(kind: type) -> dict[str, str]:
    """The string that stands under each field of a dataclass, by field name."""
    module = inspect.getmodule(kind)
    assert module is not None
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            return {
                above.target.id: under.value.value
                for above, under in zip(node.body, node.body[1:], strict=False)
                if isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(under, ast.Expr)
                and isinstance(under.value, ast.Constant)
                and isinstance(under.value.value, str)
            }
    return {}


def _option(one: Field[Any], hint: Any, text: str) -> Callable[[Command], Command]:
    default = one.default if one.default is not MISSING else None
    flags = (*one.metadata.get("flags", ()), "--" + one.name.replace("_", "-"))
    arguments: dict[str, Any] = {"help": text or None, "default": default}
    if hint in (bool, bool | None) and one.metadata.get(
        "switch"
    ):  # on by default in some preset, so it must be possible to say no
        name = one.name.replace("_", "-")
        return click.option(f"--{name}/--no-{name}", one.name, **arguments)
    if hint is bool:
        return click.option(*flags, one.name, is_flag=True, **arguments)
    if get_origin(hint) is tuple:
        return click.option(*flags, one.name, multiple=True, type=_type(get_args(hint)[0]), **arguments)
    return click.option(
        *flags,
        one.name,
        type=_type(hint),
        metavar=one.metadata.get("metavar"),
        show_default=default is not None,
        **arguments,
    )


def _type(hint: Any) -> Any:
    """The click type of an annotation; None in it only means that the option may be left out."""
    parts = (
        [part for part in get_args(hint) if part is not type(None)] if get_origin(hint) in (Union, types.UnionType) else [hint]
    )
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    if words:
        return NumberOr(words) if float in parts else click.Choice(words)
    if get_origin(parts[0]) is frozenset:
        return Blocks()
    return click.Path(path_type=Path) if parts[0] is Path else parts[0]
