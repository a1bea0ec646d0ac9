"""What is searched: options with a range or a list of values, as --over names them. No imports of optuna or torch."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..utils.errors import UserError

RATES = ("lr", "lr_min", "weight_decay")
"""Options whose ranges always have a logarithmic scale."""
WIDE = 10
"""Other ranges have one if the upper end is at least this many times the lower."""
DIGITS = 3
"""Significant digits of a value from a range, so that a command can repeat it exactly."""


@dataclass(frozen=True)
class Over:
    """An option and its values: the two ends of a range, or a list.

    Attributes:
        name: Name of the recipe's field.
        log: Whether a range has a logarithmic scale.
    """

    name: str
    values: tuple[Any, ...]
    is_range: bool = False
    log: bool = False

    def suggested(self, trial: Any) -> Any:
        """The value for a trial of optuna."""
        if not self.is_range:
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if isinstance(low, int):
            return trial.suggest_int(self.name, low, high, log=self.log)
        return float(f"{trial.suggest_float(self.name, low, high, log=self.log):.{DIGITS}g}")


def read_over(text: str, typed: Callable[[str, str], Any]) -> Over:
    """An argument of --over: lr=1e-4..3e-3 is a range, image_size=96,160 a list.

    Args:
        typed: Maps an option's name and a value's text to the value; raises UserError if either is wrong.
    """
    name, sign, values = text.partition("=")
    name = name.replace("-", "_")
    if not sign or not values:
        raise UserError(f"--over {text}: give a range or a list, e.g. lr=1e-4..3e-3 or image_size=96,160.")
    if ".." not in values:
        return Over(name, tuple(dict.fromkeys(typed(name, value) for value in values.split(","))))
    low, high = (typed(name, value) for value in values.split("..", 1))
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise UserError(f"--over {text}: only numbers have a range; separate values by commas.")
    if not low < high:
        raise UserError(f"--over {text}: the first number must be the smaller one.")
    return Over(name, (low, high), True, low > 0 and (name in RATES or high >= WIDE * low))


def combinations(over: list[Over]) -> list[dict[str, Any]] | None:
    """Every combination of the values; None if an option has a range."""
    if any(each.is_range for each in over):
        return None
    return [dict(zip([o.name for o in over], values, strict=True)) for values in product(*(o.values for o in over))]
