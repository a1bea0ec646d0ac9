"""Find a model's blocks and maps, and record their inputs and outputs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..nn.vitae_cells import to_map
from ..utils.errors import UserError
from .subject import Subject

KINDS = {"ValueConvAttention": "attention", "Attention": "attention", "WindowAttention": "window attention"}
"""Display names of mixers by class name; other mixers are called by their class name."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments and output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class Block:
    """A block of a model.

    Attributes:
        label: Stage and number within it, both from 1: "3.2"; only the stage if it is a single block.
        kind: Its token mixer, e.g. "SAM", "attention", "DMA"; else the class name of the block.
        stride: Stride of its map in pixels.
    """

    name: str
    label: str
    kind: str
    stride: int


@contextmanager
def recording(subject: Subject, names: Iterable[str]) -> Iterator[dict[str, Call]]:
    """Record the latest call of these modules inside the context, by name."""
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
    """The blocks of every stage in order; a stage without blocks counts as one block."""
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
    """The blocks at the stride with the most blocks; in a tie, the penultimate stride if it is among them."""
    places = blocks(subject)
    strides = list(dict.fromkeys(place.stride for place in places))
    groups = [[place for place in places if place.stride == stride] for stride in [*strides[-2:-1], *strides[::-1]]]
    return max(groups, key=len)


def kind(block: nn.Module) -> str:
    """The token mixer of a block; see `Block`."""
    mixer = getattr(block, "mixer", None) or getattr(block, "attn", None) or block
    return KINDS.get(type(mixer).__name__, type(mixer).__name__)


def grid_of(call: Call, image: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width of the map of a block's tokens: from its arguments, else the image size over the stride."""
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
        UserError: There are too few tokens for the map.
    """
    if x.dim() == 3:
        prefix = x.shape[1] - grid[0] * grid[1]
        if prefix < 0:
            raise UserError(f"{x.shape[1]} tokens do not fit a map of {grid[0]} x {grid[1]}.")
        return to_map(x[:, prefix:], grid)
    return x.permute(0, 3, 1, 2) if channels_last else x
