"""Parse arguments into dataclasses; report a mistake in one line with the nearest names."""

import contextlib
import inspect
import io
from collections.abc import Collection, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from ..utils.errors import UserError, unknown

T = TypeVar("T")


def parse(
    kind: type[T], arguments: Sequence[str], command: str, description: str | None = None, default: Any = None
) -> T:
    """Parse options into a dataclass; a mistake is a UserError with the nearest names."""
    import tyro

    known = [f"--{f.name.replace('_', '-')}" for f in fields(kind)]  # type: ignore[arg-type]
    accepted = {"--help", *known, *(option.replace("--", "--no-") for option in known)}
    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        if option.replace("_", "-") not in accepted:
            raise unknown("option", option, known)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            options, rest = tyro.cli(
                kind,
                prog=f"dmformer {command}",
                description=description or inspect.getdoc(kind),
                args=_with_none(kind, arguments),
                **({} if default is None else {"default": default}),
                return_unknown_args=True,
                config=(tyro.conf.PositionalRequiredArgs,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = " ".join(line.strip("│ ").strip() for line in output.getvalue().splitlines()[1:])
        raise UserError(f"{text.split('───')[0].strip()} See dmformer {command} --help.") from None
    if rest and not rest[0].startswith("-"):
        raise UserError(f"unexpected argument '{rest[0]}': names come first, then options.")
    if rest:
        raise unknown("option", rest[0].partition("=")[0], known)
    return options


def _with_none(kind: type, arguments: Sequence[str]) -> list[str]:
    """Arguments with "none" spelled as tyro expects it, for options that may have no value."""
    hints = get_type_hints(kind)
    optional = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if NoneType in get_args(hint)}
    before = ["", *arguments]
    return [
        "None" if argument == "none" and option in optional else argument
        for option, argument in zip(before, arguments, strict=False)
    ]


def option_name(option: str) -> str:
    """The name of the field that an argument such as --image-size=96 or --no-compile sets."""
    return option.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")


def split_options(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """The options of these names with their values, and the other arguments."""
    named: list[str] = []
    others: list[str] = []
    current = others
    for argument in arguments:
        if argument.startswith("--"):
            current = named if option_name(argument) in names else others
        current.append(argument)
    return named, others


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return None
