"""Errors that the user can fix, reported in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Says what is wrong, where, and what to do; the command prints it and exits with 2, without a traceback."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """An error for an unknown name that suggests the nearest known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known[:12])}."
    return UserError(f"unknown {what} '{name}': {hint}")


def untrained(name: str) -> UserError:
    """An error for a model name given where a trained model is needed."""
    return UserError(
        f"{name} is a model name, so its weights would be random: there is nothing to explain in them. "
        "Give a run's best/ folder."
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return (str(error) or type(error).__name__).splitlines()[0]
