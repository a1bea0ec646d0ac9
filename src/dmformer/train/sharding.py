"""A model divided among processes by FSDP2, whose saved state is that of a whole model.

Every process keeps a part of each parameter, gradient, moment of the optimiser and moving average, and gathers the
parameters of a part of the model while it computes it. A run can go on with another number of processes, also without
division.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..utils.errors import UserError

WEIGHTS = "model.safetensors"
"""Where accelerate saves the model."""


def divide(model: nn.Module, device: torch.device) -> None:
    """Divide a model among all processes, in place; its stages are gathered one at a time, single layers together."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for child in model.children():
        for part in child.children():
            whole = not isinstance(part, nn.ModuleList | nn.ModuleDict)  # it is called as a whole
            if whole and list(part.children()) and list(part.parameters()):
                fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


class Whole:
    """The state of a divided module as that of a whole one, which all processes must ask for."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return {name: _whole(value) for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.module.state_dict()
        self.module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def save_whole(accelerator: Accelerator, optimizer: Optimizer) -> None:
    """Have an accelerator save and load a divided model and its optimiser as whole ones."""

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        weights[:] = [Whole(model).state_dict() for model in models]

    def load(models: list[nn.Module], folder: str) -> None:
        while models:  # none is left for accelerate
            Whole(models.pop()).load_state_dict(load_file(Path(folder) / WEIGHTS))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    optimizer.register_state_dict_post_hook(_gathered)


def fit_moments(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser to be loaded, with its moments divided and laid out in memory as their parameters are.

    PyTorch's fused optimisers read both in the order in which they lie in memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def of(i: int, value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == parameters[i].shape
        return _part(value, parameters[i]) if same else value

    return {**state, "state": {i: {k: of(i, v) for k, v in own.items()} for i, own in state["state"].items()}}


def check_divisible(compiled: bool, precision: str) -> None:
    """Raise UserError for options that do not go with a divided model."""
    if compiled or precision == "fp16":
        raise UserError(
            f"--shard does not work with {'--compile' if compiled else '--precision fp16: give bf16 or no'}."
        )


def _gathered(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    moments = {i: {name: _whole(value) for name, value in own.items()} for i, own in state["state"].items()}
    return {**state, "state": moments}


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, divided and laid out in memory as another one."""
    if like is None:
        return value
    part: Any = torch.empty_like(like, dtype=value.dtype)
    if isinstance(like, DTensor):
        value = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return part.copy_(value)
