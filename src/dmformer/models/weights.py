"""Read weights of ours and of others into models. Files are untrusted: tensors are read, nothing in them is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..utils.errors import UserError, first_line
from ..utils.files import whole_file
from . import PUBLISHED
from .key_layouts import recognise
from .vitae import checkpoint_filter_fn

Head = Literal["keep", "drop", "imagenet1k"]

WRAPPERS = ("state_dict_ema", "state_dict", "model")
"""Under which key files keep their tensors, the first that is there."""

OTHER_DEPTHS: dict[str, dict[str, Any]] = {"smt_s": {"depths": (3, 4, 18, 1)}}
"""Arguments of a second form in which a variant was published."""

POSITIONS = "stages.0.pos_embed"
"""Learned positions of vitae_b, vitae_l and vitae_h: a class token's and one a patch."""


@dataclass(frozen=True)
class Match:
    """A variant that a state dict was compared with.

    Attributes:
        variant: Its name.
        arguments: Of `timm.create_model`, where it is not the default form.
        differences: One phrase each, the classifier left out; none where the weights are the variant's.
    """

    variant: str
    arguments: dict[str, Any]
    differences: list[str]

    def __str__(self) -> str:
        given = ", ".join(f"{k}={v}" for k, v in self.arguments.items())
        return f"{self.variant} with {given}" if given else self.variant


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .pth.tar file, out of the wrappers `state_dict_ema`, `state_dict`, `model`.

    Raises:
        UserError: The file is missing, damaged, or holds anything but tensors in plain containers.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a weights file: {first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and whatever else a hostile file provokes
        raise UserError(f"{path} is refused, it needs more than tensors to be read: {first_line(error)}") from None
    return unwrapped(state, str(path))


def unwrapped(state: Any, where: str) -> dict[str, Tensor]:
    """A state dict out of the wrappers that published files have, `module.` taken off its names."""
    while isinstance(state, Mapping) and any(isinstance(state.get(w), Mapping) for w in WRAPPERS):
        state = next(state[w] for w in WRAPPERS if isinstance(state.get(w), Mapping))
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise UserError(f"{where} holds no state dict: tensors by name are expected.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def write_state_dict(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, whole or not at all."""
    with whole_file(path) as part:
        safetensors.torch.save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, part)


def to_best_device(model: nn.Module) -> torch.device:
    """Move a model to the GPU, if there is one, in the memory format that suits convolutions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return device


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], head: Head = "keep") -> None:
    """Load weights into a model, strictly: every tensor is used and every parameter filled.

    Args:
        model: One of timm's or ours. Ours also take their authors' files and those of OpenMMLab and Hugging Face.
        source: A weights file, a folder with model.safetensors, hf-hub:owner/name, or a state dict.
        head: "keep" the classifier of the weights; "drop" it and leave the model's as it is, for other classes; or
            take from one of ImageNet-22K's 21,841 classes the rows of "imagenet1k", by WordNet synset (one of the
            thousand, n04399382, is not among them and keeps the model's row).

    Raises:
        UserError: A file that cannot be read, or weights of another family, variant or class count.
    """
    where, state = _read(source)
    own = model.state_dict()
    ours = type(model).__module__.startswith("dmformer.")
    if ours:
        state = our_names(state, where)
        state = checkpoint_filter_fn(state, model)
    if head != "keep":
        for name in head_names(model):
            if head == "drop":
                state[name] = own[name]
            elif name in state:
                state[name] = _imagenet1k_rows(state[name], own[name], where)
    check_fit(model, state, where)
    model.load_state_dict({**{n: v for n, v in own.items() if n.endswith("num_batches_tracked")}, **state})


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """What a source is called in an error, and its state dict."""
    if isinstance(source, Mapping):
        return "the state dict", unwrapped(source, "the state dict")
    if str(source).startswith("hf-hub:"):
        return str(source), timm.create_model(str(source), pretrained=True).state_dict()
    path = Path(source)
    return str(source), read_state_dict(path / "model.safetensors" if path.is_dir() else path)


def our_names(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state dict of the authors, OpenMMLab or Hugging Face under our names; one that has ours already as it is.

    Raises:
        UserError: Tensors that the layout of the others does not know, as when two models are mixed.
    """
    found = recognise(state)
    if found is None:
        return dict(state)
    layout, renamed, unknown = found
    if unknown:
        raise UserError(
            f"{where} is laid out as {layout.name}, but also holds {_listed(unknown)}, which that has not: "
            "it mixes two models, or is of a changed one."
        )
    return renamed


def head_names(model: nn.Module) -> list[str]:
    """Names of the tensors of a model's classifier."""
    heads = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (heads,) if isinstance(heads, str) else heads
    return [name for name in model.state_dict() if name.rpartition(".")[0] in heads]


def check_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError unless a model and a state dict have the same names and shapes."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differences = compare(own, state)
    if not differences:
        return
    head = set(head_names(model))
    body = compare({n: own[n] for n in own if n not in head}, {n: t for n, t in state.items() if n not in head})
    hint = ""
    if not body:
        kind = "class count"
    else:
        kind = "size" if all(d.startswith("has ") for d in body) else "architecture"
        nearest = identify(state) if type(model).__module__.startswith("dmformer.") else None
        if nearest is not None:
            hint = f" The nearest variant is {nearest}." if nearest.differences else f" It holds {nearest}."
    raise UserError(f"{where} is of another {kind}: it {sentence(differences)}.{hint}")


def compare(own: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    """How a state dict differs from the names and shapes of a model, a phrase each; counters may be missing."""
    missing = [f"lacks {n}" for n in own if n not in state and not n.endswith("num_batches_tracked")]
    surplus = [f"holds {n}, which the model has not" for n in state if n not in own]
    wrong = [
        f"has {n} of shape {tuple(state[n].shape)}, not {own[n]}"
        for n in own
        if n in state and tuple(state[n].shape) != own[n]
    ]
    return [*wrong, *missing, *surplus]


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights that this package wrote for such a model; UserError for weights of another one."""
    differences = compare({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, state)
    if differences:
        raise UserError(f"{where} is of another model: it {sentence(differences)}.")
    model.load_state_dict(dict(state))


def identify(state: Mapping[str, Tensor]) -> Match | None:
    """The variant that a state dict with our names is of, or the nearest; None where none has half of its names."""
    best = None
    for variant in PUBLISHED:
        for arguments in ({}, OTHER_DEPTHS.get(variant)):
            if arguments is None:
                continue
            own = _shapes(variant, tuple(arguments.items()))
            body = {n: v for n, v in state.items() if not n.startswith("head.fc.")}
            if POSITIONS in own and POSITIONS in body:  # their number follows the images, not the variant
                own = {**own, POSITIONS: (1, body[POSITIONS].shape[1], own[POSITIONS][2])}
            if len(own.keys() & body.keys()) < len(body) / 2:
                continue
            found = Match(variant, arguments, compare(own, body))
            if best is None or len(found.differences) < len(best.differences):
                best = found
    return best


@cache
def _shapes(variant: str, arguments: tuple[tuple[str, Any], ...]) -> dict[str, tuple[int, ...]]:
    model = timm.create_model(variant, device="meta", num_classes=0, **dict(arguments))  # type: ignore[arg-type]
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _imagenet1k_rows(rows: Tensor, own: Tensor, where: str) -> Tensor:
    """The rows of ImageNet-1K's classes out of those of ImageNet-22K's."""
    wide, narrow = ImageNetInfo("imagenet-22k").label_names(), ImageNetInfo("imagenet-1k").label_names()
    if len(rows) != len(wide) or len(own) != len(narrow):
        raise UserError(
            f"{where} has {len(rows)} classes and the model {len(own)}: the rows of ImageNet-1K are taken from "
            f"{len(wide)} classes to {len(narrow)}."
        )
    place = {synset: i for i, synset in enumerate(wide)}
    picked = own.clone()
    for i, synset in enumerate(narrow):
        if synset in place:
            picked[i] = rows[place[synset]]
    return picked


def sentence(differences: list[str]) -> str:
    """The first differences, and how many more there are."""
    more = len(differences) - 3
    return "; ".join(differences[:3]) + (f"; and {more} more" if more > 0 else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = [
    "Head",
    "Match",
    "head_names",
    "identify",
    "load_strictly",
    "load_weights",
    "our_names",
    "read_state_dict",
    "sentence",
    "to_best_device",
    "write_state_dict",
]
