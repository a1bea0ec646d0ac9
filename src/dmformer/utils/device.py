"""Choose the device that a model runs on: the one place that knows which there are."""

import re
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Raise UserError for what cannot be the name of a device, without importing torch."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device is {name}: it must be auto, cpu, cuda, cuda:N (GPU number N, from 0) or mps.")


def computes_bf16(device: "torch.device") -> bool:
    """Whether a device has instructions for products in bfloat16: an x86 CPU with AVX-512 BF16 or AMX, a CUDA GPU from
    Ampere on."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def find_device(name: str = "auto") -> "torch.device":
    """The device of this name; "auto" is the accelerator that PyTorch finds, else the CPU.

    Raises:
        UserError: An unknown name, or a device that is not there.
    """
    import torch

    check_device(name)
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    device = torch.device(name)
    instead = "give --device cpu, or leave the option out"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device mps: PyTorch finds no Metal GPU of a Mac: {instead}.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            built = "" if torch.version.cuda or torch.version.hip else ", and this PyTorch is built without CUDA"
            raise UserError(f"--device {name}: PyTorch finds no CUDA device{built}: {instead}.")
        if (device.index or 0) >= count:
            last = f" to cuda:{count - 1}" if count > 1 else " only"
            raise UserError(f"--device {name}: this machine has cuda:0{last}.")
    return device
