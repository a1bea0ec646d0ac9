"""Load our own and published weights into models. Files are untrusted: only tensors are read, no code is run."""

import re
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

from ..utils.device import find_device
from ..utils.errors import UserError, first_line
from ..utils.files import whole_file
from ..utils.pretrained import check_file, folder_of
from . import PUBLISHED
from .key_layouts import recognise
from .vitae import checkpoint_filter_fn

Head = Literal["keep", "drop", "imagenet1k"]

WRAPPERS = ("state_dict_ema", "state_dict", "model")
"""Keys under which files store their tensors; the first one present is used."""

_PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")

OTHER_DEPTHS: dict[str, dict[str, Any]] = {"smt_s": {"depths": (3, 4, 18, 1)}}
"""Arguments of a variant's second published form."""

POSITIONS = "stages.0.pos_embed"
"""Learned positions of vitae_b, vitae_l and vitae_h: one for the class token and one per patch."""


@dataclass(frozen=True)
class Match:
    """A variant that a state dict was compared with.

    Attributes:
        arguments: Arguments for `timm.create_model`; empty for the default form.
        differences: One phrase per difference outside the classifier; empty if the weights match.
    """

    variant: str
    arguments: dict[str, Any]
    differences: list[str]

    def __str__(self) -> str:
        given = ", ".join(f"{k}={v}" for k, v in self.arguments.items())
        return f"{self.variant} with {given}" if given else self.variant


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .pth.tar file, unwrapped from `state_dict_ema`, `state_dict` or `model`.

    Raises:
        UserError: The file is missing, damaged, or holds anything but tensors in plain containers.
    """
    check_file(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a weights file: {first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and anything else that a malicious file provokes
        raise UserError(f"{path} is refused, because it contains more than tensors: {first_line(error)}") from None
    return unwrapped(state, str(path))


def unwrapped(state: Any, where: str) -> dict[str, Tensor]:
    """A state dict without the wrappers of published files and without the prefixes `module.` and `_orig_mod.`, which
    PyTorch adds for several processes and for compiled models."""
    while isinstance(state, Mapping) and any(isinstance(state.get(w), Mapping) for w in WRAPPERS):
        state = next(state[w] for w in WRAPPERS if isinstance(state.get(w), Mapping))
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise UserError(f"{where} contains no state dict (tensors by name).")
    return {_PREFIXES.sub("", str(key)): value for key, value in state.items()}


def write_state_dict(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file atomically."""
    with whole_file(path) as part:
        safetensors.torch.save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, part)


def to_device(model: nn.Module, name: str = "auto") -> torch.device:
    """Move a model to a device (see `find_device`), in the memory format that is fastest for convolutions."""
    device = find_device(name)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return device


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], head: Head = "keep") -> None:
    """Load weights into a model, strictly: every tensor is used and every parameter is set.

    Args:
        model: A model, timm's or ours. Ours also load files of the authors, OpenMMLab and Hugging Face.
        source: A weights file, a folder with model.safetensors, the name of this package's weights, hf-hub:owner/name,
            or a state dict.
        head: "keep" uses the classifier of the weights. "drop" ignores it and leaves the model's unchanged, for other
            classes. "imagenet1k" takes its rows, by WordNet synset, from a classifier of ImageNet-22K's 21,841 classes
            (n04399382 is not among them and keeps the model's row).

    Raises:
        UserError: The file cannot be read, or the weights are of another family, variant or number of classes.
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
    """Name of a source for error messages, and its state dict."""
    if isinstance(source, Mapping):
        return "the state dict", unwrapped(source, "the state dict")
    if str(source).startswith("hf-hub:"):
        return str(source), timm.create_model(str(source), pretrained=True).state_dict()
    path = folder_of(str(source))
    return str(source), read_state_dict(path / "model.safetensors" if path.is_dir() else path)


def our_names(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename a state dict of the authors, OpenMMLab or Hugging Face to our names; our own is returned unchanged.

    Raises:
        UserError: It contains tensors that its layout does not know, for example because two models are mixed.
    """
    found = recognise(state)
    if found is None:
        return dict(state)
    layout, renamed, unknown = found
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{where} has the key layout of {layout.name}, but also contains {', '.join(unknown[:3])}{more}: "
            "it mixes two models, or is of a modified one."
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
    """How a state dict differs from a model's names and shapes, one phrase per difference; counters may be missing."""
    missing = [f"lacks {n}" for n in own if n not in state and not n.endswith("num_batches_tracked")]
    surplus = [f"contains {n}, which the model lacks" for n in state if n not in own]
    wrong = [
        f"has {n} of shape {tuple(state[n].shape)}, not {own[n]}"
        for n in own
        if n in state and tuple(state[n].shape) != own[n]
    ]
    return [*wrong, *missing, *surplus]


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights that this package wrote for the same kind of model; UserError for others."""
    differences = compare({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, state)
    if differences:
        raise UserError(f"{where} is of another model: it {sentence(differences)}.")
    model.load_state_dict(dict(state))


def identify(state: Mapping[str, Tensor]) -> Match | None:
    """The variant of a state dict with our names, or the nearest one; None if none has half of its names."""
    best = None
    for variant in PUBLISHED:
        for arguments in ({}, OTHER_DEPTHS.get(variant)):
            if arguments is None:
                continue
            own = _shapes(variant, tuple(arguments.items()))
            body = {n: v for n, v in state.items() if not n.startswith("head.fc.")}
            if POSITIONS in own and POSITIONS in body:  # their number depends on the image size, not the variant
                own = {**own, POSITIONS: (1, body[POSITIONS].shape[1], own[POSITIONS][2])}
            if len(own.keys() & body.keys()) < len(body) / 2:
                continue
            found = Match(variant, arguments, compare(own, body))
            if not found.differences:
                return found
            if best is None or len(found.differences) < len(best.differences):
                best = found
    return best


@cache
def _shapes(variant: str, arguments: tuple[tuple[str, Any], ...]) -> dict[str, tuple[int, ...]]:
    model = timm.create_model(variant, device="meta", num_classes=0, **dict(arguments))  # type: ignore[arg-type]
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _imagenet1k_rows(rows: Tensor, own: Tensor, where: str) -> Tensor:
    """The classifier rows of ImageNet-1K's classes, taken from those of ImageNet-22K."""
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
