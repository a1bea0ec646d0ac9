"""Packages that are installed with an optional extra."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .errors import UserError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Report a package missing inside the context as a UserError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise _missing(extra, what, error.name) from None


def require(extra: str, what: str, *packages: str) -> None:
    """Report a package that is not installed as `needs` does, without importing any: that can take seconds."""
    for package in packages:
        if find_spec(package) is None:
            raise _missing(extra, what, package)


def _missing(extra: str, what: str, package: str | None) -> UserError:
    return UserError(f"{what} needs the extra '{extra}' ({package} is missing): pip install 'dmformer[{extra}]'.")
