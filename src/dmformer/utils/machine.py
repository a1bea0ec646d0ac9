"""Facts about the machine that this process runs on."""

import os
import platform
from pathlib import Path


def available_cores() -> int:
    """Number of cores that this process may use; a container or a scheduler can limit it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's name if Linux reports it, else its architecture, and the number of CPUs: "NAME x N"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} x {len(names) or os.cpu_count()}"


def resident_mb(key: str) -> float:
    """Memory of this process in MB (2^20 bytes), from Linux: "VmRSS" now, "VmHWM" at its peak.

    Raises:
        OSError: The system is not Linux.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10


def energy_joules(folder: Path = Path("/sys/class/powercap")) -> float | None:
    """Joules that the processors have used since some moment, from Linux's RAPL; None if it cannot be read.

    Most systems let only the administrator read it. The counters start again from 0 after some hours at most.
    """
    try:
        counters = [(package / "energy_uj").read_text() for package in folder.glob("intel-rapl:?")]
    except OSError:
        return None
    return sum(int(counter) for counter in counters) / 1e6 if counters else None


def gpu_joules(uuid: str) -> float | None:
    """Joules that a GPU has used since its driver was loaded, from NVIDIA's NVML; None if it cannot be read.

    It needs the package nvidia-ml-py, and a GPU of the Volta generation or later.

    Args:
        uuid: As NVML writes it: GPU-….
    """
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid)) / 1e3
    except pynvml.NVMLError:
        return None
