"""The hardware that graphs are compiled for: the GPUs, and the instructions of the CPU beside them."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from max.driver import (
    Device,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)

from pipelines.errors import InputError

CPU_TARGET = "cpu"
APIS = ("cuda", "hip")
CPUINFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = re.compile(
    r"v?aes|amx_\w+|asimd\w*|atomics|avx\w*|abm|bf16|bmi[12]|cx16|f16c|fma4?|fp|gfni|i8mm|lzcnt|movbe|v?pclmulqdq|popcnt"
    r"|sha\w*|sm[34]|ss*se\w*|sve\w*"
)
"""Flags that compilers choose instructions by. The others describe the kernel, or what a hypervisor shows."""


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction sets of the CPU at hand, by the names of /proc/cpuinfo, and its architecture."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset({platform.machine(), *filter(INSTRUCTION_SETS.fullmatch, flags.split())})


def target_of(devices: Sequence[Device]) -> str:
    """Target of graphs that are compiled for these devices, such as "cpu" or "cuda:sm_90a"."""
    device = devices[0]
    return CPU_TARGET if device.is_host else f"{device.api}:{device.architecture_name}"


def set_target(target: str, num_devices: int) -> None:
    """Makes this process compile for GPUs that it does not have. No device may have been opened before.

    Args:
        target: API and architecture, "cuda:sm_90a".
        num_devices: The GPUs that seem to be there.

    Raises:
        InputError: It is not a target.
    """
    api, _, architecture = target.partition(":")
    if api not in APIS or not architecture:
        raise InputError(f"target (--target) is '{target}': write {' or '.join(f'{api}:ARCHITECTURE' for api in APIS)}")
    set_virtual_device_api(api)
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(num_devices)
