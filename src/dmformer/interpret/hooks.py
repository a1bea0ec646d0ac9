"""Where a model's blocks and maps are, and what they receive and give while it runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..nn.vitae_cells import to_map
from ..utils.errors import UserError
from .subject import Subject

KINDS = {"ValueConvAttention": "attention", "Attention": "attention", "WindowAttention": "window attention"}
"""What a mixer is called by its class; others by the name of the class."""


@dataclass(frozen=True)
class Call:
    """One run of a part: its arguments and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class Block:
    """A block and its place.

    Attributes:
        name: Of the module in the model.
        label: Stage and number in it, both from 1: "3.2"; of a stage that is one block the stage alone.
        kind: What mixes its positions, e.g. "SAM", "attention", "DMA"; of others the class of the block.
        stride: Of its map, in pixels.
    """

    name: str
    label: str
    kind: str
    stride: int


@contextmanager
def recording(subject: Subject, names: Iterable[str]) -> Iterator[dict[str, Call]]:
    """What these parts of the model receive and give at their latest run inside, by name."""
    found: dict[str, Call] = {}

    def keep(name: str):
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found[name] = Call(args, kwargs, output)

        return hook

    handles = [subject.module(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def blocks(subject: Subject) -> list[Block]:
    """The blocks of every stage in order; a stage that is not made of blocks counts as one."""
    found = []
    for stage, (name, stride) in enumerate(zip(subject.stages, subject.strides, strict=True), 1):
        module = subject.module(name)
        inner = getattr(module, "blocks", module)
        children = list(inner.named_children()) if isinstance(inner, nn.Sequential | nn.ModuleList) else []
        prefix = f"{name}.blocks" if inner is not module else name
        for number, (key, child) in enumerate(children, 1):
            found.append(Block(f"{prefix}.{key}", f"{stage}.{number}", kind(child), stride))
        if not children:
            found.append(Block(name, str(stage), kind(module), stride))
    return found


def deepest_blocks(subject: Subject) -> list[Block]:
    """The blocks at the stride that has the most of them; of several such strides the penultimate, if it is one."""
    places = blocks(subject)
    strides = list(dict.fromkeys(place.stride for place in places))
    groups = [[place for place in places if place.stride == stride] for stride in [*strides[-2:-1], *strides[::-1]]]
    return max(groups, key=len)


def kind(block: nn.Module) -> str:
    """What mixes the positions of a block: see `Block`."""
    mixer = getattr(block, "mixer", None) or getattr(block, "attn", None) or block
    return KINDS.get(type(mixer).__name__, type(mixer).__name__)


def grid_of(call: Call, image: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width of the map that a block's tokens are of: what it was told, else the image's by the stride."""
    if len(call.args) > 1 and isinstance(call.args[1], tuple):
        return call.args[1]
    return image[0] // stride, image[1] // stride


def as_map(x: Tensor, grid: tuple[int, int], channels_last: bool) -> Tensor:
    """A block's input or output as a map (B, C, H, W), without the tokens before the map's.

    Args:
        x: (B, C, H, W), with `channels_last` (B, H, W, C), or tokens (B, P + H * W, C).
        grid: H and W, for tokens.
        channels_last: See `Subject.channels_last_maps`.

    Raises:
        UserError: Of tokens that are too few for the map.
    """
    if x.dim() == 3:
        prefix = x.shape[1] - grid[0] * grid[1]
        if prefix < 0:
            raise UserError(f"{x.shape[1]} tokens are not those of a map of {grid[0]} x {grid[1]}.")
        return to_map(x[:, prefix:], grid)
    return x.permute(0, 3, 1, 2) if channels_last else x
