"""Maps inside SMT's scale-aware modulation: heads, modulator, value and output."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.mixers.sam import SAM
from ..utils.errors import unknown
from .hooks import Block, blocks, recording
from .subject import Subject

CUT = 0.25
"""Frequencies above this, in periods per position of the map, count as high: half of the highest along an axis."""


@dataclass(frozen=True)
class Part:
    """One map inside a block.

    Attributes:
        name: "head 3x3 before", "head 3x3", ..., "modulator", "value" or "output".
        energy: Mean square over images, channels and positions.
        high: Fraction of high frequencies in the variance over positions; see `high_frequencies`.
        picture: Mean over channels of the absolute value, (H, W), for the first image.
    """

    name: str
    energy: float
    high: float
    picture: Tensor


def sam_blocks(subject: Subject) -> list[Block]:
    """The blocks whose mixer is SAM."""
    return [place for place in blocks(subject) if isinstance(getattr(subject.module(place.name), "mixer", None), SAM)]


def chosen_blocks(subject: Subject, names: Sequence[str] = ()) -> list[Block]:
    """The SAM blocks with these names or labels; by default the last of each stage.

    Raises:
        UserError: A name does not belong to a block with SAM.
    """
    places = sam_blocks(subject)
    if not names:
        return list({place.stride: place for place in places}.values())
    known = {**{place.label: place for place in places}, **{place.name: place for place in places}}
    for name in names:
        if name not in known:
            raise unknown("SAM block", name, known)
    return [known[name] for name in names]


@torch.no_grad()
def read_modulators(subject: Subject, batches: Iterable[Tensor], places: Sequence[Block]) -> list[list[Part]]:
    """The parts of each of these SAM blocks, in the order of the formula out = proj(SAA(MHMC(s(x))) * v(x)).

    A head's map is read before and after its convolution (both before the aggregation, which mixes the heads); the
    modulator is the output of the aggregation.

    Args:
        batches: Images of one size, (B, 3, H, W) each.
        places: Blocks, see `chosen_blocks`.
    """
    wanted = [f"{place.name}.mixer{part}" for place in places for part in (".mhmc", ".saa", ".v", "")]
    sums: list[dict[str, Tensor]] = [{} for _ in places]
    pictures: list[dict[str, Tensor]] = [{} for _ in places]
    count = 0
    for images in batches:
        with recording(subject, wanted) as calls:
            subject.model(images)
        for i, place in enumerate(places):
            mixer = f"{place.name}.mixer"
            sam = subject.module(mixer)
            assert isinstance(sam, SAM)
            sides = [conv.kernel_size[0] for conv in sam.mhmc.convs]  # type: ignore[index]
            maps = {}
            for when, x in ((" before", calls[f"{mixer}.mhmc"].args[0]), ("", calls[f"{mixer}.mhmc"].output)):
                maps |= {f"head {k}x{k}{when}": head for k, head in zip(sides, x.chunk(len(sides), 1), strict=True)}
            maps["modulator"] = calls[f"{mixer}.saa"].output
            maps["value"] = calls[f"{mixer}.v"].output
            maps["output"] = calls[mixer].output
            for name, x in maps.items():
                high, whole = high_frequencies(x)
                found = torch.stack([x.square().mean((1, 2, 3), dtype=torch.float64).sum(), high, whole])
                sums[i][name] = sums[i].get(name, torch.zeros(())) + found
                pictures[i].setdefault(name, x[0].abs().mean(0))
        count += len(images)
    return [
        [
            Part(name, (found[0] / count).item(), (found[1] / found[2]).item(), pictures[i][name])
            for name, found in sums[i].items()
        ]
        for i in range(len(places))
    ]


def high_frequencies(x: Tensor) -> tuple[Tensor, Tensor]:
    """Power of the high frequencies, and of all but the mean, in the Fourier transforms of maps (B, C, H, W).

    Frequencies are high if sqrt(f_y^2 + f_x^2) is above `CUT`; for white noise, that is 80 % of the power. The
    transform treats the map as periodic, so differences between opposite borders contribute.
    """
    power = torch.fft.fft2(x.double()).abs().square().sum((0, 1))
    power[0, 0] = 0
    length = torch.hypot(torch.fft.fftfreq(x.shape[2])[:, None], torch.fft.fftfreq(x.shape[3]))
    return power[length > CUT].sum(), power.sum()
