"""Packages that come with an extra of the installation."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Tell a missing package inside as the extra that brings it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs the extra '{extra}' ({error.name} is missing): pip install 'dmformer[{extra}]'."
        ) from None
