"""Packages that are installed with an optional extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Report a package missing inside the context as a UserError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs the extra '{extra}' ({error.name} is missing): pip install 'dmformer[{extra}]'."
        ) from None
