"""The training loop and its run folders, which know nothing of any task."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # here, for the command looks into run folders before it pays for torch
        from .loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
