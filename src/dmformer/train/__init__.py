"""The training loop and its run folders, independent of any task."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # here, because the command looks into run folders before it imports torch
        from .loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
