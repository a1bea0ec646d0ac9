"""The race: who goes on, how many epochs fit into the time, and which models are level. Pure functions."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..utils.intervals import Score

FINALISTS = 3
"""Number of models that are trained with several seeds."""


@dataclass(frozen=True)
class Round:
    """One round: who runs, each for how many epochs, with which number of seeds; and who is left out for time."""

    names: list[str]
    epochs: int
    seeds: int
    left_out: list[str]


@dataclass(frozen=True)
class Standing:
    """A score from 0 to 1, the mean over the seeds, with its interval."""

    name: str
    score: float
    low: float
    high: float
    seeds: tuple[float, ...]


def sizes_of_rounds(entrants: int) -> list[int]:
    """How many models run in each round, the final included: half of them, rounded up, go on."""
    sizes = [entrants]
    while sizes[-1] > FINALISTS:
        sizes.append(max(-(-sizes[-1] // 2), FINALISTS))
    return sizes


def part_of_time(rounds_left: int, seeds: int) -> float:
    """The fraction of the time left that the next round gets: equal parts, but one for each seed in the final."""
    return 1.0 if rounds_left == 1 else 1 / (rounds_left - 1 + seeds)


def plan_round(
    seconds: Mapping[str, float],
    left: float,
    most_epochs: int,
    least_epochs: int = 0,
    seeds: int = 1,
    part: float = 1.0,
    favoured: Container[str] = (),
) -> Round:
    """The longest round that fits into its part of the time left; one epoch of all may take all of it.

    If even that is too much in the first round, the costliest are left out; at least one model stays. Later rounds have
    no fewer epochs than the one before, whose runs then count again. A final in which the seeds leave too few epochs
    has fewer seeds.

    Args:
        seconds: Of one epoch, by name.
        left: Seconds for this round and all later ones.
        least_epochs: Epochs of the round before; 0 in the first.
        part: Fraction of the time left that this round gets.
        favoured: Names of those that are left out last.
    """
    kept = sorted(seconds, key=lambda name: (name not in favoured, seconds[name]))
    while not least_epochs and len(kept) > 1 and sum(seconds[name] for name in kept) > left:
        kept.pop()
    budget = left * part
    one_epoch = sum(seconds[name] for name in kept)
    while seeds > 1 and budget / (seeds * one_epoch) < max(least_epochs, 1):
        seeds -= 1
    epochs = min(max(int(budget / (seeds * one_epoch)), least_epochs, 1), most_epochs)
    names = [name for name in seconds if name in kept]
    return Round(names, epochs, seeds, [name for name in seconds if name not in kept])


def forecast(
    seconds: Mapping[str, float], left: float, most_epochs: int, seeds: int, favoured: Container[str] = ()
) -> list[tuple[Round, float]]:
    """The rounds to expect and the seconds that each takes, if every time the costlier half goes on.

    Args:
        seconds: Of one epoch, by name.
        left: Seconds for all rounds.
        favoured: Names of those that are left out last.
    """
    found, standing, epochs = [], dict(seconds), 0
    sizes = sizes_of_rounds(len(standing))
    for i, size in enumerate(sizes):
        costliest = sorted(standing, key=lambda name: -standing[name])[:size]
        standing = {name: standing[name] for name in costliest}
        rounds_left = len(sizes) - i
        part = part_of_time(rounds_left, seeds)
        plan = plan_round(standing, left, most_epochs, epochs, seeds if rounds_left == 1 else 1, part, favoured)
        trainings = plan.seeds - (plan.epochs == epochs)  # the runs of the round before count again
        standing = {name: standing[name] for name in plan.names}
        length = plan.epochs * trainings * sum(standing.values())
        found.append((plan, length))
        left, epochs = max(left - length, 0.0), plan.epochs
    return found


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that nothing beats in both score and latency, from the fastest to the best.

    Args:
        points: (score, latency) by name.
    """

    def beaten(name: str) -> bool:
        score, latency = points[name]
        return any(
            a >= score and t <= latency and (a, t) != (score, latency)
            for other, (a, t) in points.items()
            if other != name
        )

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name][1])


def going_on(points: Mapping[str, tuple[float, float]], number: int, by_front: bool) -> list[str]:
    """The models that go on: the best, or `by_front` the first fronts, the best of the last one."""
    if not by_front:
        return sorted(points, key=lambda name: (-points[name][0], points[name][1]))[:number]
    rest, kept = dict(points), []
    while rest and len(kept) < number:
        best = sorted(front(rest), key=lambda name: -rest[name][0])
        kept += best[: number - len(kept)]
        rest = {name: point for name, point in rest.items() if name not in best}
    return kept


def standing(name: str, seeds: Sequence[Score]) -> Standing:
    """The mean score of the seeds. Its interval is the mean of theirs, widened to the range of the seeds."""
    values = tuple(seed.value for seed in seeds)
    low, high = fmean(seed.low for seed in seeds), fmean(seed.high for seed in seeds)
    return Standing(name, fmean(values), min(low, *values), max(high, *values), values)


def ranking(standings: Sequence[Standing], latency: Mapping[str, float]) -> list[Standing]:
    """The best first; of equal ones the fastest."""
    return sorted(standings, key=lambda each: (-each.score, latency[each.name]))


def level_with(first: Standing, others: Sequence[Standing]) -> list[Standing]:
    """Those whose interval overlaps the first's."""
    return [each for each in others if each.name != first.name and each.high >= first.low and each.low <= first.high]
