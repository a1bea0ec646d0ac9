"""What a model may need: limits as people write them, and the lower bounds that rule a model out unbuilt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..utils.errors import UserError

MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
MEGABYTES = {"kb": 2**-10, "mb": 1.0, "gb": 2.0**10}
"""MB are 2^20 bytes, as everywhere in this package."""

JOULES = {"mj": 1e-3, "j": 1.0}
OPERATIONS = {"kmac": 1e-6, "mmac": 1e-3, "gmac": 1.0}

FIGURES = {
    "latency_ms": ("latency", "ms"),
    "memory_mb": ("memory", "MB"),
    "disk_mb": ("disk", "MB"),
    "energy_j": ("energy", "J"),
    "gmacs": ("operations", "GMAC"),
}
"""Each figure that can be limited, in words, and its unit."""

FLOAT_MARGIN, INT8_MARGIN = 2.0, 16.0
"""How many times as fast as the machine's product of float matrices a model is believed to compute at best: Winograd's
convolutions save half of the operations; 8-bit units are up to eight times as wide (a reconstruction)."""


@dataclass(frozen=True)
class Limits:
    """Maximum latency, energy and operations of a call, peak memory of a process and size of the file; None for no
    limit."""

    latency_ms: float | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None
    energy_j: float | None = None
    gmacs: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in FIGURES)

    def ratios(self, figures: Mapping[str, float | None]) -> dict[str, float]:
        """Each figure that has a limit, divided by it."""
        there = {name: (figures.get(name), getattr(self, name)) for name in FIGURES}
        return {name: value / limit for name, (value, limit) in there.items() if value is not None and limit}

    def exceeded(self, figures: Mapping[str, float | None]) -> str:
        """The limits that figures exceed, in words: "latency 25.1 ms above 20 ms"; "" if they meet all."""
        return ", ".join(
            f"{FIGURES[name][0]} {figures[name]:.3g} {FIGURES[name][1]} above {getattr(self, name):.3g} "
            f"{FIGURES[name][1]}"
            for name, ratio in self.ratios(figures).items()
            if ratio > 1
        )


def parse_limits(latency: str | None, memory: str | None, disk: str | None, energy: str | None = None) -> Limits:
    """Limits from the options --latency, --memory, --disk and --energy, such as "20ms", "300MB", "1.5 GB", "50mJ" or,
    as a measure of energy that needs no counter, "0.5GMAC".

    Raises:
        UserError: No number, an unknown unit, or a limit of 0.
    """
    counted = energy is not None and energy.strip().lower().endswith("mac")
    return Limits(
        quantity("--latency", latency, MILLISECONDS, "20ms or 0.5s"),
        quantity("--memory", memory, MEGABYTES, "300MB or 1.5GB"),
        quantity("--disk", disk, MEGABYTES, "20MB or 500KB"),
        quantity("--energy", None if counted else energy, JOULES, "50mJ, or 0.5GMAC for operations"),
        quantity("--energy", energy if counted else None, OPERATIONS, "0.5GMAC or 300MMAC"),
    )


def quantity(option: str, text: str | None, units: Mapping[str, float], example: str) -> float | None:
    """A number with a unit, in the unit whose factor is 1; None stays None."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]+)\s*", text)
    factor = units.get(found[2].lower().replace("ib", "b")) if found else None
    if found is None or factor is None:
        raise UserError(f"{option} {text}: give a number and a unit, e.g. {example}.")
    if not float(found[1]):
        raise UserError(f"{option} {text}: it must be more than 0.")
    return float(found[1]) * factor


def lower_bounds(
    parameters_m: float, gmacs: float, int8: bool, batch_size: int, gmacs_per_second: float
) -> dict[str, float | None]:
    """What a model needs at least, in the figures of `Limits`.

    Args:
        parameters_m: Millions.
        gmacs: 10^9 multiply-adds per image.
        int8: Whether weights and arithmetic have 8 bits.
        gmacs_per_second: 10^9 multiply-adds per second of a large product of float32 matrices on this machine.
    """
    weights = parameters_m * 1e6 * (1 if int8 else 4) / 2**20
    fastest = gmacs_per_second * (INT8_MARGIN if int8 else FLOAT_MARGIN)
    operations = gmacs * batch_size
    latency = 1e3 * operations / fastest
    return {"latency_ms": latency, "memory_mb": weights, "disk_mb": weights, "gmacs": operations}


def none_meets(limits: Limits, found: Sequence[tuple[str, Mapping[str, float | None]]]) -> UserError:
    """The error if no candidate meets the limits, which names the one that exceeds them least.

    Args:
        found: Names and figures, measured or bounds, of all candidates.
    """
    name, figures = min(found, key=lambda each: max(limits.ratios(each[1]).values(), default=0.0))
    return UserError(
        f"none of the {len(found)} candidates meets the limits. The closest is {name}: {limits.exceeded(figures)}. "
        "Raise the limit (with --resume, which keeps the measurements), or start again with other --models, smaller "
        "--image-sizes or more --threads."
    )
