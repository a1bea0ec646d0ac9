"""Class activation maps: the image regions behind a class's score, at any layer of any model.

The methods are those of the library grad-cam. This module converts a layer's output (a map with channels first or last,
or tokens) for the library, and leaves the model unchanged.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.backbone import Stage
from ..utils.errors import UserError, unknown
from ..utils.extras import needs
from .boxes import score_in
from .subject import Subject

METHODS = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "eigen-cam": "EigenCAM", "layer-cam": "LayerCAM"}
"""The library's classes by method name. Eigen-CAM ignores the class: its map is the same for all classes."""


def class_activation(
    subject: Subject,
    images: Tensor,
    classes: Sequence[int],
    method: str = "grad-cam",
    layer: int | str | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """Class activation maps (B, H, W) from 0 to 1, of the images' size, on the CPU.

    The library clips negative values, scales each map to the range 0 to 1, resizes it bilinearly, and rescales it.
    Therefore the values of two maps are not comparable. A map that is constant, or has no value above 0 (precisely,
    1e-7), becomes 0 everywhere.

    Args:
        subject: Its model is left unchanged, including its mode and the parameters' gradients.
        images: (B, 3, H, W), as prepared by the subject.
        layer: A stage's number, from 1, or a module's name; the last stage by default. If a module is called several
            times, its first call counts.
        masks: (B, H, W): for segmenters the pixels whose logits of the class are summed, by default those of
            `predicted_masks`; for detectors, which need them, a box of which the score counts.

    Raises:
        UserError: The method or layer is unknown, the layer's output is not a map or does not reach the logits, or the
            logits are not finite.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if len(classes) != len(images):
        raise ValueError(f"{len(images)} images need as many classes, not {len(classes)}")
    name = layer_name(subject, layer)
    height, width = images.shape[-2:]
    images = subject.padded(images)
    each = [None] * len(classes) if masks is None else masks
    targets = [_target(subject, k, mask, (height, width)) for k, mask in zip(classes, each, strict=True)]
    as_map = _reader(subject, name, images)
    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(subject.model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="ignore", invalid="ignore", over="ignore"))  # in Grad-CAM++'s quotient
        stack.enter_context(_gradients_from(subject, name, as_map))
        cam = _library_class(method)(subject.model, [subject.module(name)], as_map)
        stack.callback(cam.activations_and_grads.release)
        found = cam(images, targets)
        if found.shape[1:] != (height, width):
            from pytorch_grad_cam.utils.image import scale_cam_image

            found = np.asarray(scale_cam_image(found[:, :height, :width]))
    if not np.isfinite(found).all():
        raise UserError(f"{subject.name} has outputs that are not finite: its weights are damaged.")
    return torch.from_numpy(found)


def layer_name(subject: Subject, layer: int | str | None = None) -> str:
    """The name of the module that `class_activation` uses for a layer; for a stage, the most informative one.

    A stage that ends with a norm, as in VAN and SMT, is read before the norm, because all positions have equal strength
    after it (reconstruction, measured in docs/explain.md). The last block of a ViT that classifies by its class token
    is read at its first norm, because the block's patch outputs are not used.

    Raises:
        UserError: The model has no such layer.
    """
    stages = subject.stages
    number = str(len(stages) if layer is None else layer)
    if not number.isdecimal():
        subject.module(number)
        return number
    if not 1 <= int(number) <= len(stages):
        raise UserError(f"{subject.name} has stages 1 to {len(stages)}, but no stage {number}.")
    name = stages[int(number) - 1]
    part: Any = subject.module(name)
    if isinstance(part, Stage) and len(part.blocks) and not isinstance(part.norm, nn.Identity):
        return f"{name}.blocks.{len(part.blocks) - 1}"
    reads_token = getattr(subject.model, "global_pool", None) == "token"
    return f"{name}.norm1" if reads_token and name == stages[-1] and hasattr(part, "norm1") else name


@torch.no_grad()
def cell_size(subject: Subject, image: Tensor, layer: int | str | None = None) -> tuple[int, int]:
    """Height and width in pixels of an image (3, H, W) that one value of a layer's map represents.

    Raises:
        UserError: As in `class_activation`, for the layer.
    """
    name, images = layer_name(subject, layer), subject.padded(image[None])
    as_map, sizes = _reader(subject, name, images), []
    hook = subject.module(name).register_forward_hook(lambda _, __, output: sizes.append(as_map(output).shape[-2:]))
    try:
        subject.model(images)
    finally:
        hook.remove()
    if not sizes:
        raise UserError(f"layer {name} of {subject.name} does not reach the logits: {_advice(subject)}")
    return round(images.shape[-2] / sizes[0][0]), round(images.shape[-1] / sizes[0][1])


def predicted_masks(logits: Tensor, classes: Sequence[int]) -> tuple[Tensor, list[bool]]:
    """The pixels predicted as a class, (B, H, W), or all pixels if there are none; and whether there are any.

    Args:
        logits: (B, K, H, W).
    """
    masks = logits.argmax(1) == torch.tensor(classes, device=logits.device)[:, None, None]
    found = masks.flatten(1).any(1)
    return masks | ~found[:, None, None], found.tolist()


def _library_class(method: str) -> Callable[..., Any]:
    with needs("explain", "Class activation"):
        import pytorch_grad_cam as library
    if method != "eigen-cam":
        return getattr(library, METHODS[method])

    class EigenCAM(library.EigenCAM):
        """Eigen-CAM with a defined sign, and without matrices of positions by positions (17 GB at 256 x 256)."""

        def get_cam_image(
            self, input_tensor: Any, layer: Any, targets: Any, activations: Any, grads: Any, smooth: Any
        ) -> np.ndarray:
            return np.stack([_first_component(a) for a in activations])

    return EigenCAM


def _first_component(activation: np.ndarray) -> np.ndarray:
    """Projection of (C, H, W) onto its first principal component, (H, W).

    Its sign is arbitrary; it is chosen such that the largest value is positive (Seg-Eigen-CAM, Applied Sciences 2025,
    15(13) 7562, equation 13), because negative values are clipped.
    """
    if not np.isfinite(activation).all():
        return np.full(activation.shape[1:], np.nan, np.float32)
    places = activation.reshape(len(activation), -1).T
    places = places - places.mean(0)
    components: Any = np.linalg.svd(places, full_matrices=False)
    projection = places @ components[2][0]
    return (projection if projection.max() >= -projection.min() else -projection).reshape(activation.shape[1:])


def _target(subject: Subject, k: int, mask: Tensor | None, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The scalar to differentiate for an image of this size, from its logits (K), or (K, H, W) with padding, or from
    its candidates (n, 4 + K)."""
    if subject.of_boxes:
        assert mask is not None
        return lambda rows: score_in(rows, k, mask)

    def of_pixels(logits: Tensor) -> Tensor:
        logits = logits[:, : size[0], : size[1]]
        pixels = predicted_masks(logits[None], [k])[0][0] if mask is None else mask.to(logits)
        return (logits[k] * pixels).sum()

    return of_pixels if subject.of_pixels else lambda logits: logits[k]


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without parameter gradients; restore its state afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient


@contextmanager
def _gradients_from(subject: Subject, name: str, as_map: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Start gradients at a layer, so that earlier layers cost no more than in evaluation."""
    reached = False

    def begin(module: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        nonlocal reached
        if reached:
            return None
        reached = True
        as_map(output)  # reports an unreadable output before anything else fails
        return output.detach().requires_grad_().clone()  # a copy, because the next layer may modify it in place

    def end(module: nn.Module, arguments: Any, output: Any) -> None:
        if not reached or not output.requires_grad:
            raise UserError(f"layer {name} of {subject.name} does not reach the logits: {_advice(subject)}")

    hooks = [subject.module(name).register_forward_hook(begin), subject.model.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _reader(subject: Subject, name: str, images: Tensor) -> Callable[[Any], Tensor]:
    """A function that converts a layer's output or gradient to a map (B, C, h, w) in new memory."""
    B, _, height, width = images.shape
    where = f"layer {name} of {subject.name}"
    parts, path = dict(subject.model.named_modules()), name.split(".")
    around = [parts[".".join(path[:n])] for n in range(len(path), -1, -1)]
    prefixes = [int(n) for m in around if isinstance(n := getattr(m, "num_prefix_tokens", None), int)]

    def as_map(output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(f"{where} returns a {type(output).__name__} instead of a tensor: {_advice(subject)}")
        found = None
        if len(output) == B and output.dim() == 4:
            _, a, b, c = output.shape
            layouts = [(output, b, c), (output.permute(0, 3, 1, 2), a, b)]
            if subject.channels_last_maps:
                layouts.reverse()
            found = next((m for m, h, w in layouts if _covers(h, w, height, width)), None)
        elif len(output) == B and output.dim() == 3:
            for prefix in dict.fromkeys([*prefixes, 0]):
                if found is None and (grid := _grid(output.shape[1] - prefix, height, width)):
                    found = output[:, prefix:].transpose(1, 2).unflatten(2, grid)
        if found is None:
            raise UserError(
                f"{where} returns {tuple(output.shape)}, which is not a map of the image: {_advice(subject)}"
            )
        if found.shape[-2:].numel() == 1:
            raise UserError(
                f"{where} has a single position for an image of {height} x {width}: take an earlier layer, or a "
                "larger image."
            )
        return found.clone(memory_format=torch.contiguous_format)

    return as_map


def _covers(h: int, w: int, height: int, width: int) -> bool:
    """Whether h x w is the map size of an image at some stride, with each side rounded up or down."""
    least = max(height / (h + 1), width / (w + 1))
    most = min(side / (n - 1) if n > 1 else math.inf for side, n in ((height, h), (width, w)))
    return least < most


def _grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Height and width of a map with this number of tokens, if any; if several, the best aspect ratio."""
    found = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    found = [(h, w) for h, w in found if _covers(h, w, height, width)]
    return min(found, key=lambda grid: abs(math.log(grid[0] * width / grid[1] / height)), default=None)


def _advice(subject: Subject) -> str:
    return f"take a stage, 1 to {len(subject.stages)}, or a module that returns a map or tokens."
