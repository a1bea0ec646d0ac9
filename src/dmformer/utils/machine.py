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
